"""Training a policy in the imagination of a world model."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from worldmodel.agents.imagined_policy import Imagination, ImaginedPolicy
from worldmodel.agents.trained import check_env, environments, read_trained
from worldmodel.batch import Batch
from worldmodel.callbacks import TruncatedBPTT, missing
from worldmodel.envs.play import EpisodeReturns, play
from worldmodel.errors import UserError, at_least
from worldmodel.losses import lambda_returns
from worldmodel.modules.optimizer import Schedule, adamw
from worldmodel.restore import own_parts
from worldmodel.runs.files import find_checkpoint

PERCENTILES = (0.05, 0.95)  # the range of the returns lies between them
MIN_RANGE = 0.01  # of the returns, in the critic's unit, so that noise among equal returns does not drive the actor
SEEDS = {"val": 1000, "test": 2000}  # of the real environments


class Imagine(ImaginedPolicy, pl.LightningModule):
    """An actor and a critic, trained on rollouts of a world model that start from states of real data.

    The world model sees the data in closed loop, with its state carried as in its own training, and never changes. From
    some of the frames it rolls out H steps without observations, under the actor. The critic learns their
    lambda-returns. The actor's gradient goes through the model for a Box's actions (Hafner et al. 2020, Dreamer, arXiv
    1912.01603) and is REINFORCE's for discrete ones (Hafner et al. 2023, DreamerV3, arXiv 2301.04104). Steps are
    weighted by the probability that the episode reaches them. Validation and test use the real environment.

    Args:
        world: Run of `worldmodel fit`, or one of its checkpoints.
        horizon: Steps of a rollout.
        starts: Rollouts in each training step, from as many frames of the batch.
        discount: Discount of rewards for each step.
        gae_lambda: Lambda of the returns.
        ent_coef: Weight of the actor's entropy in nats; returns are scaled to a range of 1.
        width: Width of the hidden layers of actor and critic.
        depth: Hidden layers of actor and critic.
        slow_decay: Decay of the average of the critic's weights, which gives the values in the returns.
        range_decay: Decay of the average range of the returns.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        lr_schedule: Constant, or a cosine to a hundredth over the planned steps.
        warmup_steps: Steps over which the learning rate rises linearly.
        episodes: Episodes in the real environment, in validation and in test.
        trust: Run the code that the world model's checkpoint names: of its environment, such as module:ID, of its rule,
            encoder and decoder.
    """

    returns_range: Tensor

    def __init__(
        self,
        world: str,
        horizon: int = 15,
        starts: int = 256,
        discount: float = 0.98,
        gae_lambda: float = 0.95,
        ent_coef: float = 1e-3,
        width: int = 64,
        depth: int = 2,
        slow_decay: float = 0.98,
        range_decay: float = 0.99,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 100,
        episodes: int = 20,
        trust: bool = False,
    ) -> None:
        at_least(1, "model.", horizon=horizon, starts=starts, episodes=episodes)
        if not 0 <= discount < 1:
            raise UserError(f"model.discount is {discount}: it must be at least 0 and below 1")
        trained = read_trained(find_checkpoint(Path(world)), trust)
        if trained.policy is not None:
            raise UserError(f"model.world {world} is a run of `imagine`: give the run of its world model")
        if not trust:
            check_env(trained, None, "give --model.trust true")
        super().__init__(trained.model, trained.layout.action_space, width, depth, discount)
        self.save_hyperparameters(ignore=["trust"])  # the word of the user, not of a checkpoint
        self.hparams["rule"] = trained.arguments["rule"]
        self.hparams["world_arguments"] = dict(trained.arguments)  # so that a checkpoint needs no other run to act
        self.hparams["action_space"] = dict(trained.layout.action_space)
        self.trained = trained
        self.slow_critic = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("returns_range", torch.zeros(()))
        self.imagined_return = MeanMetric()
        self.episode_returns: EpisodeReturns | None = None  # of the last validation or test

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the digests of the world model's own code."""
        if own := own_parts(self.hparams["world_arguments"]):
            checkpoint["parts"] = own

    def configure_callbacks(self) -> list[pl.Callback]:
        """What carries the world model's state, unless the Trainer has its own."""
        return missing(self.trainer, TruncatedBPTT)

    def on_validation_epoch_start(self) -> None:
        self.imagined_return.reset()  # a fit cannot add to a tensor that `Trainer.validate` made, in inference mode

    on_test_epoch_start = on_validation_epoch_start

    def begin(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents (B, T, Z) of a batch's frames, the states before (B, T, D) and after them, the carry (B, D)."""
        with torch.no_grad():
            inputs = batch["obs"][:, :-1], batch["action"], batch["is_first"]
            seen, loop = self.world.follow(*inputs, batch.get("carry"))
            return seen.z, loop.before, loop.h, seen.carry(loop.carry)

    def losses(self, rollouts: Imagination) -> dict[str, Tensor]:
        """The terms () of the loss, actor and critic, and the mean return and entropy."""
        features, reward, continues, log_prob, entropy = rollouts
        unit = self.unit
        value = self.slow_critic(features).squeeze(-1) * unit
        returns = lambda_returns(reward, value, continues, self.discount, self.hparams["gae_lambda"])
        weight = torch.cat([torch.ones_like(continues[:, :1]), continues[:, :-1]], dim=1)
        weight = (weight * self.discount).cumprod(dim=1).detach() / self.discount
        spread = self._range(returns.detach() / unit) * unit
        gain = returns / spread if self.actions.is_box else log_prob * ((returns - value[:, :-1]) / spread).detach()
        error = (self.critic(features[:, :-1].detach()).squeeze(-1) - returns.detach() / unit).square()
        return {
            "actor": -(weight * (gain + self.hparams["ent_coef"] * entropy)).mean(),
            "critic": (weight * error).mean() / (spread / unit).square().mean(),
            "return": returns[:, 0].detach().mean(),
            "entropy": entropy.detach().mean(),
        }

    def _range(self, returns: Tensor) -> Tensor:
        """The range () of the returns from 5% to 95%, averaged over training steps (DreamerV3's equation 11)."""
        low, high = torch.quantile(returns.flatten(), returns.new_tensor(PERCENTILES))
        if self.training:
            first = self.returns_range == 0
            decay = torch.where(first, 0.0, self.hparams["range_decay"])
            self.returns_range.copy_(decay * self.returns_range + (1 - decay) * (high - low))
        return self.returns_range.clamp(min=MIN_RANGE)

    def _starts(self, batch: Batch, z: Tensor, before: Tensor) -> tuple[Tensor, Tensor, torch.Generator]:
        """Latents and states of S frames of real transitions, and the random generator of this batch."""
        generator = torch.Generator(z.device).manual_seed(int(batch["position"]))
        weights = batch["valid"].flatten().to(z.dtype) + 1e-9
        chosen = weights.multinomial(self.hparams["starts"], replacement=True, generator=generator)
        return z.flatten(0, 1)[chosen], before.flatten(0, 1)[chosen], generator

    def _step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of a batch's rollouts, and a step's outputs."""
        z, before, h, carry = self.begin(batch)
        from_z, from_h, generator = self._starts(batch, z, before)
        terms = self.losses(self.imagine(from_z, from_h, self.hparams["horizon"], generator))
        return terms, {"carry": carry, "h": h}

    def setup(self, stage: str) -> None:
        """Check that the data fits the world model."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "layout"):
            return
        datamodule.take_origins(self.trained.layout.observation_space)
        own, world = datamodule.layout, self.trained.layout
        if (own.observation_space, own.action_space) != (world.observation_space, world.action_space):
            raise UserError(
                f"{datamodule.path} has {own.obs_dim} entries of an observation and {own.action_dim} of an action, or"
                f" other bounds than the data of {self.trained.path}, with {world.obs_dim} and {world.action_dim}:"
                " give the data of model.world"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        terms, outputs = self._step(batch)
        loss, trainer = terms["actor"] + terms["critic"], self.trainer
        every = getattr(trainer, "log_every_n_steps", 0)
        if every and (trainer.global_step + 1) % every == 0:
            losses = {"train/loss": loss, "train/loss_actor": terms["actor"], "train/loss_critic": terms["critic"]}
            others = {f"train/{name}": terms[name] for name in ("return", "entropy")}
            self.log_dict(losses | others, sync_dist=True)
        return {"loss": loss, **outputs}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        terms, outputs = self._step(batch)
        self.imagined_return.update(terms["return"])
        self.log(f"{stage}/imagined_return", self.imagined_return, on_epoch=True, batch_size=len(outputs["h"]))
        return outputs

    def on_validation_epoch_end(self) -> None:
        self._play("val")

    def on_test_epoch_end(self) -> None:
        self._play("test")

    def _play(self, stage: Literal["val", "test"]) -> None:
        """Play whole episodes in the real environment, with the most likely actions."""
        trained, number = self.trained, self.hparams["episodes"]
        simulator, observed = environments(trained, trained.env_id, min(number, 20))
        self.episode_returns = play(simulator, trained.agent(observed, self), number, SEEDS[stage])
        mean, low, high = self.episode_returns.mean
        metrics = {f"{stage}/return_mean": mean, f"{stage}/return_low": low, f"{stage}/return_high": high}
        self.log_dict(metrics, batch_size=number)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for average, online in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
                average.lerp_(online, 1 - self.hparams["slow_decay"])

    def configure_optimizers(self) -> Any:
        hp, planned = self.hparams, self.trainer.estimated_stepping_batches
        rate, schedule = (hp["learning_rate"], hp["weight_decay"]), (hp["lr_schedule"], hp["warmup_steps"])
        return adamw(self.parameters(), *rate, *schedule, planned)
