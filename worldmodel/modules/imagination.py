"""How a policy is trained in a world model's imagination."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from worldmodel.agents.imagined_policy import Imagination, ImaginedPolicy
from worldmodel.agents.trained import environments, read_trained
from worldmodel.batch import Batch
from worldmodel.envs.evaluate import Played, play
from worldmodel.envs.vector import SimulationError, close
from worldmodel.errors import UserError
from worldmodel.losses import lambda_returns
from worldmodel.modules.optimizer import Schedule, adamw
from worldmodel.runs.checkpoint import find_checkpoint

PERCENTILES = (0.05, 0.95)  # between which the returns' range is taken
SMALLEST = 0.01  # of that range, in the critic's units: an actor is not driven by noise where all is alike


class Imagine(ImaginedPolicy, pl.LightningModule):
    """An actor and a critic, trained on rollouts of a world model that start from hidden states of real data.

    The world model sees the data in closed loop, its state carried as in its own training, and never changes. From some
    of the frames it rolls out H steps without observations, under the actor. The critic learns their lambda-returns;
    the actor's gradient goes through the model where actions are a Box's (Hafner et al. 2020, Dreamer, arXiv
    1912.01603), and is REINFORCE's where they are discrete (Hafner et al. 2023, DreamerV3, arXiv 2301.04104). Steps
    count as much as the episode is likely to reach them. The real environment judges in validation and test.

    Args:
        world: the run of `worldmodel fit`, or a checkpoint of it.
        horizon: H, steps of a rollout.
        starts: S, rollouts a step, from as many frames of the batch.
        discount: of rewards, a step.
        trace: lambda of the returns.
        entropy_weight: of the actor's entropy, in nats, beside returns of range 1.
        width: of the hidden layers of actor and critic.
        depth: hidden layers.
        slow_decay: of the average of the critic's weights that the returns are taken from.
        range_decay: of the average of the range of the returns.
        learning_rate: of AdamW.
        weight_decay: of AdamW, on matrices only.
        lr_schedule: constant, or a cosine to a hundredth over the planned steps.
        warmup_steps: over which the learning rate rises linearly.
        episodes: played in the real environment, in validation and test.
    """

    returns_range: Tensor

    def __init__(
        self,
        world: str,
        horizon: int = 15,
        starts: int = 256,
        discount: float = 0.98,
        trace: float = 0.95,
        entropy_weight: float = 1e-3,
        width: int = 64,
        depth: int = 2,
        slow_decay: float = 0.98,
        range_decay: float = 0.99,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 100,
        episodes: int = 20,
    ) -> None:
        for name, value in (("horizon", horizon), ("starts", starts), ("episodes", episodes)):
            if value < 1:
                raise UserError(f"model.{name} is {value}: it must be at least 1")
        if not 0 <= discount < 1:
            raise UserError(f"model.discount is {discount}: it must be at least 0 and below 1")
        trained = read_trained(find_checkpoint(Path(world)))
        if trained.policy is not None:
            raise UserError(f"model.world {world} is a run of `imagine`: give the run of its world model")
        super().__init__(trained.model, trained.layout.action_space, width, depth, discount)
        self.save_hyperparameters()
        self.hparams["rule"] = trained.arguments["rule"]
        # a checkpoint acts without the run of its world
        self.hparams["world_arguments"] = dict(trained.arguments)
        self.hparams["action_space"] = dict(trained.layout.action_space)
        self.trained = trained
        self.slow_critic = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("returns_range", torch.zeros(()))
        self.imagined = MeanMetric()
        self.played: Played | None = None  # of the last validation or test

    # --- losses --------------------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents (B, T, Z) of a batch's frames, the states before (B, T, D) and behind them, the carry (B, D)."""
        with torch.no_grad():
            z, action = self.world.encode(batch["obs"][:, :-1]), self.world.action_norm(batch["action"])
            loop = self.world.predictor.closed_loop(z, action, batch["is_first"], batch.get("carry"))
            return z, loop.before, loop.h, loop.carry

    def losses(self, made: Imagination) -> dict[str, Tensor]:
        """The terms () of rollouts: actor, critic; and what is logged of them: return, entropy."""
        scale = self.unit
        value = self.slow_critic(made.features).squeeze(-1) * scale
        returns = lambda_returns(made.reward, value, made.proceeds, self.discount, self.hparams["trace"])
        reach = torch.cat([torch.ones_like(made.proceeds[:, :1]), made.proceeds[:, :-1]], dim=1)
        reach = (reach * self.discount).cumprod(dim=1).detach() / self.discount
        spread = self._range(returns.detach() / scale) * scale
        if self.actions.is_box:
            gain = returns / spread
        else:
            gain = made.log_prob * ((returns - value[:, :-1]) / spread).detach()
        told = self.critic(made.features[:, :-1].detach()).squeeze(-1)
        surprise = (told - returns.detach() / scale).square()
        return {
            "actor": -(reach * (gain + self.hparams["entropy_weight"] * made.entropy)).mean(),
            "critic": (reach * surprise).mean() / (spread / scale).square().mean(),
            "return": returns[:, 0].detach().mean(),
            "entropy": made.entropy.detach().mean(),
        }

    def _range(self, returns: Tensor) -> Tensor:
        """() how far the returns reach, 5% to 95% of them, averaged over steps (DreamerV3's equation 11)."""
        low, high = torch.quantile(returns.flatten(), returns.new_tensor(PERCENTILES))
        if self.training:
            first = self.returns_range == 0
            decay = torch.where(first, 0.0, self.hparams["range_decay"])
            self.returns_range.copy_(decay * self.returns_range + (1 - decay) * (high - low))
        return self.returns_range.clamp(min=SMALLEST)

    def _starts(self, batch: Batch, z: Tensor, before: Tensor) -> tuple[Tensor, Tensor, torch.Generator]:
        """Latents and states of S frames of real transitions, and the generator of this batch's numbers."""
        generator = torch.Generator(z.device).manual_seed(int(batch["position"]))
        likely = batch["valid"].flatten().to(z.dtype) + 1e-9
        chosen = likely.multinomial(self.hparams["starts"], replacement=True, generator=generator)
        return z.flatten(0, 1)[chosen], before.flatten(0, 1)[chosen], generator

    # --- Lightning -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Hold the data against the world model's."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "layout"):
            return
        here, there = datamodule.layout, self.trained.layout
        if (here.observation_space, here.action_space) != (there.observation_space, there.action_space):
            raise UserError(
                f"{datamodule.path} has {here.obs_dim} entries of an observation and {here.action_dim} of an action, or"
                f" other bounds than the data of {self.trained.path}, with {there.obs_dim} and {there.action_dim}:"
                " give the data of model.world"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        z, before, h, carry = self.begin(batch)
        from_z, from_h, generator = self._starts(batch, z, before)
        terms = self.losses(self.imagine(from_z, from_h, self.hparams["horizon"], generator))
        loss, trainer = terms["actor"] + terms["critic"], self.trainer
        every = getattr(trainer, "log_every_n_steps", 0)
        if every and (trainer.global_step + 1) % every == 0:
            named = {"train/loss": loss, "train/loss_actor": terms["actor"], "train/loss_critic": terms["critic"]}
            told = {f"train/{name}": terms[name] for name in ("return", "entropy")}
            self.log_dict(named | told, sync_dist=True)
        return {"loss": loss, "carry": carry, "h": h}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        z, before, h, carry = self.begin(batch)
        from_z, from_h, generator = self._starts(batch, z, before)
        self.imagined.update(self.losses(self.imagine(from_z, from_h, self.hparams["horizon"], generator))["return"])
        self.log(f"{stage}/imagined_return", self.imagined, on_epoch=True, batch_size=len(h))
        return {"carry": carry, "h": h}

    def on_validation_epoch_end(self) -> None:
        self._play("val", 1000)

    def on_test_epoch_end(self) -> None:
        self._play("test", 2000)

    def _play(self, stage: Literal["val", "test"], seed: int) -> None:
        """Whole episodes in the real environment, with the likeliest actions."""
        trained, number = self.trained, self.hparams["episodes"]
        simulator, observed = environments(trained, trained.env_id, min(number, 20))
        try:
            self.played = play(simulator, trained.agent(observed, self), number, seed)
        except SimulationError as error:
            raise UserError(f"{trained.env_id}, {error}") from error
        finally:
            close(simulator.envs)
        told = dict(zip(("return_mean", "return_low", "return_high"), self.played.mean, strict=True))
        self.log_dict({f"{stage}/{name}": value for name, value in told.items()}, batch_size=number)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for average, online in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
                average.lerp_(online, 1 - self.hparams["slow_decay"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is data: nothing in it says what to import."""
        checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).pop("_instantiator", None)

    def configure_optimizers(self) -> Any:
        hp, planned = self.hparams, self.trainer.estimated_stepping_batches
        rate, schedule = (hp["learning_rate"], hp["weight_decay"]), (hp["lr_schedule"], hp["warmup_steps"])
        return adamw(self.parameters(), *rate, *schedule, planned)
