"""Training a policy with memory: PPO on chunks of experience."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.errors import UserError
from worldmodel.losses import approximate_kl, beyond_clip, clipped_surrogate, clipped_value_loss, masked_mean
from worldmodel.modules.optimizer import Schedule, adamw, retune

SEGMENT_LOSSES = "segment_losses"  # key of a batch: the critic's loss in the first and in the second chunk of a rollout
MUTABLE = ("learning_rate", "weight_decay", "discount", "gae_lambda", "clip_coef", "vf_coef", "ent_coef")


class Policy(ActorCritic, pl.LightningModule):
    """A recurrent actor-critic (agents/actor_critic.py), trained by proximal policy optimisation.

    A batch holds chunks of experience (modules/experience.py). The state enters as `batch["carry"]` and runs through
    the frames before the chunk without gradient (burn-in), then through the chunk, where the loss is: truncated BPTT.
    The step returns `outputs["h"]`, the states after all frames, and `outputs["carry"]`, the last of them. Losses are
    means over the valid steps of a batch.

    Args:
        obs_dim: Entries of an observation: vectors, then the pixels of the images.
        action_space: The action space as plain data; from the environment.
        discount: Discount of rewards for each step.
        gae_lambda: Lambda of the advantages, from 0 (trust the critic) to 1 (trust the rewards).
        clip_coef: Change of the probability ratio from 1 at which its gradient vanishes.
        value_clip: Change of a value, on the normalised scale, at which its gradient vanishes; null: no limit.
        vf_coef: Weight of the critic's loss.
        ent_coef: Weight of the entropy, which is maximised.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        lr_schedule: Constant, or a cosine to a hundredth over the planned steps.
        warmup_steps: Steps over which the learning rate rises linearly.
        network: See agents.actor_critic.ActorCritic.
    """

    mutable = MUTABLE
    identity = (  # arguments that say what its weights mean
        "obs_dim", "action_space", "images", "rule", "latent_dim", "hidden_dim", "layers", "width", "depth",
        "head_depth", "channels",
    )  # fmt: skip

    def __init__(
        self,
        obs_dim: int,
        action_space: dict[str, Any],
        discount: float = 0.99,
        gae_lambda: float = 0.95,
        clip_coef: float = 0.2,
        value_clip: float | None = None,
        vf_coef: float = 0.5,
        ent_coef: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        **network: Any,
    ) -> None:
        super().__init__(obs_dim, action_space, **network)
        defaults = {n: p.default for n, p in signature(ActorCritic).parameters.items() if p.default is not p.empty}
        self.save_hyperparameters(defaults)  # a checkpoint also names the network's arguments that were not given
        self.save_hyperparameters()
        for name, value in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{name} is {value}: it must be from 0 to 1")
        for name, value in (("clip_coef", clip_coef), ("learning_rate", learning_rate), ("value_clip", value_clip)):
            if value is not None and not value > 0:
                raise UserError(f"model.{name} is {value}: it must be above 0")
        self._kl: list[Tensor] = []  # of the training steps since mean_kl was last called

    def terms(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of a batch, () each: policy_loss, value_loss, entropy, kl, clip_fraction; and the states."""
        clip, value_clip = self.hparams["clip_coef"], self.hparams["value_clip"]
        burn_in = batch["obs"].shape[1] - batch["action"].shape[1]
        h = self._states(batch, burn_in)
        h_chunk = h[:, burn_in:]
        distribution = self.distribution(h_chunk, batch.get("mask"))
        log_prob, value = distribution.log_prob(batch["action"]), self.normalized_value(h_chunk)
        ratio = log_prob, batch["log_prob"]
        unreduced = {
            "policy_loss": clipped_surrogate(*ratio, batch["advantage"], clip),
            "value_loss": clipped_value_loss(value, batch["value"], batch["target"], value_clip),
            "entropy": distribution.entropy(),
        }
        with torch.no_grad():
            unreduced |= {"kl": approximate_kl(*ratio), "clip_fraction": beyond_clip(*ratio, clip)}
        valid = batch["valid"][:, burn_in:]
        count = valid.sum()
        return {name: masked_mean(values, valid, count) for name, values in unreduced.items()}, h

    def _states(self, batch: dict[str, Tensor], burn_in: int) -> Tensor:
        """The states after all frames, (B, L + C, D), with a gradient from the chunk's first frame on."""
        obs, last_action, is_first = batch["obs"], batch["last_action"], batch["is_first"]
        if not burn_in:
            return self.states(obs, last_action, is_first, batch["carry"])
        with torch.no_grad():
            before = self.states(obs[:, :burn_in], last_action[:, :burn_in], is_first[:, :burn_in], batch["carry"])
        chunk = self.states(obs[:, burn_in:], last_action[:, burn_in:], is_first[:, burn_in:], before[:, -1])
        return torch.cat([before, chunk], dim=1)

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `terms` that training minimises."""
        value, entropy = self.hparams["vf_coef"], self.hparams["ent_coef"]
        return terms["policy_loss"] + value * terms["value_loss"] - entropy * terms["entropy"]

    def mean_kl(self) -> float:
        """The approximate KL divergence from the policy that acted, over the training steps since the last call."""
        divergences, self._kl = self._kl, []
        return float(torch.stack(divergences).mean()) if divergences else 0.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        terms, h = self.terms(batch)
        logged = {name: value.detach() for name, value in terms.items()}
        self._kl.append(logged["kl"])
        states = h.detach()
        if SEGMENT_LOSSES in batch:
            logged[SEGMENT_LOSSES] = batch[SEGMENT_LOSSES]
        return {"loss": self.loss(terms), "carry": states[:, -1].clone(), "h": states, **logged}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log_episodes(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log_episodes(batch, "test")

    def _log_episodes(self, batch: dict[str, Tensor], stage: Literal["val", "test"]) -> None:
        """Log the means of whole episodes: `return` and `length` (N,), and `success` if it is reported."""
        for name, values in batch.items():
            self.log(f"{stage}/{name}_mean", values.float().mean(), batch_size=len(values))

    def change(self, values: Mapping[str, float]) -> None:
        """Change hyperparameters that are `mutable` during a fit."""
        self.hparams.update(values)
        retune(self.trainer, self.hparams["learning_rate"], self.hparams["weight_decay"])

    def configure_optimizers(self) -> Any:
        hp, datamodule = self.hparams, getattr(self.trainer, "datamodule", None)
        planned = min(self.trainer.estimated_stepping_batches, getattr(datamodule, "planned_batches", float("inf")))
        rate, schedule = (hp["learning_rate"], hp["weight_decay"]), (hp["lr_schedule"], hp["warmup_steps"])
        return adamw(self.parameters(), *rate, *schedule, planned)
