"""How a policy with memory is trained: PPO on chunks of rollouts."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.errors import UserError
from worldmodel.losses import approximate_kl, beyond_clip, clipped_surrogate, clipped_value_loss, masked_mean
from worldmodel.modules.optimizer import Schedule, adamw, retune

TERMS = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")
SEGMENT_LOSSES = "segment_losses"  # of a batch: the critic's, in its rollout's first chunk and in the second
MUTABLE = ("learning_rate", "weight_decay", "discount", "trace", "clip", "value_weight", "entropy_weight")


class Policy(ActorCritic, pl.LightningModule):
    """A recurrent actor-critic (agents/actor_critic.py), trained by proximal policy optimisation.

    A batch is some chunks of a rollout (modules/rollout.py). The state enters with it as `batch["carry"]`, runs through
    the frames before a chunk without gradient (burn-in), then through the chunk, where the loss is: truncated BPTT. The
    step returns `outputs["h"]`, the states behind all frames, and `outputs["carry"]`, the last of them. A loss is the
    mean over the valid steps of its batch.

    Args:
        obs_dim: O, entries of an observation: vectors, and behind them the pixels of the images.
        action_space: as plain data; from the environment.
        images: [H, W, C] of each image in the observation.
        rule: of the memory, the update rule, a name of rules.RULES; `none`: without memory, the feed-forward baseline.
        latent_dim: Z, width of an encoded observation.
        hidden_dim: width of the hidden state.
        layers: of the update network, 1 or 2 (gru and lstm: stacked).
        gate_bias: where the gate's bias starts.
        width: of the hidden layers of encoder, actor and critic.
        depth: hidden layers of the encoder.
        head_depth: hidden layers of actor and critic.
        channels: of the first convolution, where there are images.
        discount: of a reward that comes a step later.
        trace: lambda of the advantages: 0 trusts the critic, 1 the rewards.
        clip: how far a probability ratio may leave 1 before its gradient vanishes.
        value_clip: how far a value may move at once, on the normalised scale; null: as far as it likes.
        value_weight: of the critic's loss.
        entropy_weight: of the entropy, which is raised.
        learning_rate: of AdamW.
        weight_decay: of AdamW, on matrices only.
        lr_schedule: constant, or a cosine to a hundredth over the planned steps.
        warmup_steps: over which the learning rate rises linearly.
    """

    mutable = MUTABLE

    def __init__(
        self,
        obs_dim: int,
        action_space: dict[str, Any],
        images: list[tuple[int, int, int]] | None = None,
        rule: str = "gated_norm",
        latent_dim: int = 64,
        hidden_dim: int = 64,
        layers: int = 1,
        gate_bias: float = -1.0,
        width: int = 64,
        depth: int = 1,
        head_depth: int = 1,
        channels: int = 16,
        discount: float = 0.99,
        trace: float = 0.95,
        clip: float = 0.2,
        value_clip: float | None = None,
        value_weight: float = 0.5,
        entropy_weight: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(
            obs_dim, action_space, images, rule, latent_dim, hidden_dim, layers, gate_bias, width, depth, head_depth,
            channels,
        )  # fmt: skip
        self.save_hyperparameters()
        for name, value in (("discount", discount), ("trace", trace)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{name} is {value}: it must be from 0 to 1")
        positive = {"clip": clip, "learning_rate": learning_rate}
        positive |= {} if value_clip is None else {"value_clip": value_clip}
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"model.{name} is {value}: it must be above 0")
        self._kl: list[Tensor] = []  # of the steps since it was asked for

    def terms(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """What is logged of a batch, () each: policy_loss, value_loss, entropy, kl, clip_fraction; and the states."""
        clip, value_clip = self.hparams["clip"], self.hparams["value_clip"]
        early = batch["obs"].shape[1] - batch["action"].shape[1]
        h = self._states(batch, early)
        late = h[:, early:]
        distribution = self.distribution(late, batch.get("mask"))
        log_prob, value = distribution.log_prob(batch["action"]), self.normalized_value(late)
        ratio = log_prob, batch["log_prob"]
        unreduced = {
            "policy_loss": clipped_surrogate(*ratio, batch["advantage"], clip),
            "value_loss": clipped_value_loss(value, batch["value"], batch["target"], value_clip),
            "entropy": distribution.entropy(),
        }
        with torch.no_grad():
            unreduced |= {"kl": approximate_kl(*ratio), "clip_fraction": beyond_clip(*ratio, clip)}
        valid = batch["valid"][:, early:]
        count = valid.sum()
        return {name: masked_mean(values, valid, count) for name, values in unreduced.items()}, h

    def _states(self, batch: dict[str, Tensor], early: int) -> Tensor:
        """Behind all frames, (B, L + C, D), with a gradient from the chunk's first on."""
        obs, last_action, is_first = batch["obs"], batch["last_action"], batch["is_first"]
        if not early:
            return self.states(obs, last_action, is_first, batch["carry"])
        with torch.no_grad():
            before = self.states(obs[:, :early], last_action[:, :early], is_first[:, :early], batch["carry"])
        late = self.states(obs[:, early:], last_action[:, early:], is_first[:, early:], before[:, -1])
        return torch.cat([before, late], dim=1)

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of `terms` that is made small."""
        value, entropy = self.hparams["value_weight"], self.hparams["entropy_weight"]
        return terms["policy_loss"] + value * terms["value_loss"] - entropy * terms["entropy"]

    def mean_kl(self) -> float:
        """The approximate KL divergence from the policy that acted, over the training steps since the last call."""
        found, self._kl = self._kl, []
        return float(torch.stack(found).mean()) if found else 0.0

    # --- Lightning -----------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        terms, h = self.terms(batch)
        told = {name: value.detach() for name, value in terms.items()}
        self._kl.append(told["kl"])
        states = h.detach()
        if SEGMENT_LOSSES in batch:
            told[SEGMENT_LOSSES] = batch[SEGMENT_LOSSES]
        return {"loss": self.loss(terms), "carry": states[:, -1].clone(), "h": states, **told}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log_played(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log_played(batch, "test")

    def _log_played(self, batch: dict[str, Tensor], stage: Literal["val", "test"]) -> None:
        """Of whole episodes: `return` and `length` (N,), and `success` where it is known."""
        for name, values in batch.items():
            self.log(f"{stage}/{name}_mean", values.float().mean(), batch_size=len(values))

    def change(self, values: Mapping[str, float]) -> None:
        """Hyperparameters, of those that are `mutable`, take other values in the midst of a fit."""
        self.hparams.update(values)
        retune(self.trainer, self.hparams["learning_rate"], self.hparams["weight_decay"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is data: nothing in it says what to import."""
        checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).pop("_instantiator", None)

    def configure_optimizers(self) -> Any:
        hp, datamodule = self.hparams, getattr(self.trainer, "datamodule", None)
        planned = min(self.trainer.estimated_stepping_batches, getattr(datamodule, "planned_batches", float("inf")))
        rate, schedule = (hp["learning_rate"], hp["weight_decay"]), (hp["lr_schedule"], hp["warmup_steps"])
        return adamw(self.parameters(), *rate, *schedule, planned)
