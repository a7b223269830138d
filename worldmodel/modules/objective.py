"""What a world model is trained for: the terms of its loss on a segment.

Three objectives, one function each: `reconstruction`, `latent`, `tokens`. A term is a mean over the segment's valid
steps (), so that ranks average to the mean over all steps of all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from worldmodel import losses
from worldmodel.batch import Batch
from worldmodel.cells.recurrence import previous_states
from worldmodel.predictor import ClosedLoop
from worldmodel.returns import lambda_returns

if TYPE_CHECKING:
    from worldmodel.modules.world_model import WorldModel

TRACE = 0.95  # lambda of the value head's targets


class Seen(NamedTuple):
    """A segment in the model's units, and what the model made of it."""

    batch: Batch
    obs: Tensor  # (B, T + 1, O) normalised
    action: Tensor  # (B, T, A) normalised
    z: Tensor  # (B, T + 1, Z)
    loop: ClosedLoop
    start: Tensor | None  # (B, D) the state before the segment; None: zeros

    def mean(self, error: Tensor) -> Tensor:
        """Of errors (B, T), over the valid steps."""
        return losses.masked_mean(error, self.batch["valid"], self.batch["num_valid"])


def reconstruction(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """The predicted latent, decoded, against the next observation; and the decoder on the latents themselves."""
    obs, loop = seen.obs, seen.loop
    return {
        "prediction": seen.mean(_obs_error(model, loop.pred, obs[:, 1:])),
        "autoencoding": seen.mean(_obs_error(model, seen.z[:, :-1], obs[:, :-1])),
        "consistency": seen.mean(losses.squared_error(loop.pred, seen.z[:, 1:].detach())),
    }


def latent(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """The predicted latent against the target's; the decoder as a probe without gradient into the model."""
    z = seen.z[:, :-1]
    terms = {
        "prediction": seen.mean(losses.squared_error(seen.loop.pred, _target(model, seen))),
        "probe": seen.mean(_obs_error(model, z.detach(), seen.obs[:, :-1])),
    }
    return terms | _anti_collapse(model, z, seen.batch)


def tokens(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """Cross-entropy of the next token in nats, and accuracy, over what is asked for.

    A step counts by its reward (envs.sequences). In training its sum is divided by what the training data ask for on
    average, so that ranks average to the mean over all; in evaluation by what this batch asks for (see `weight`).
    Where a head is stagewise, what its exact channels alone predict has a cross-entropy of its own, and what the others
    add costs its square: once nothing is left to add, what they learned before fades, instead of disturbing later on.
    """
    logits, following = model.decoder(seen.loop.pred), seen.obs[:, 1:]
    mean = model.reward_norm.mean
    if not model.training:
        mean = weight(model, seen.batch) / seen.batch["num_valid"].clamp(min=losses.NONE)
    worth = seen.batch["reward"] / mean.clamp(min=1e-9)
    right = logits.argmax(dim=-1) == following.argmax(dim=-1)
    terms = {
        "prediction": seen.mean(losses.cross_entropy(logits, following) * worth),
        "accuracy": seen.mean(right * worth).detach(),
    }
    if (exact := model.predictor.exact_prediction(seen.loop.h)) is not None:
        terms["exact"] = seen.mean(losses.cross_entropy(model.decoder(exact), following) * worth)
        terms["added"] = seen.mean(losses.squared_error(seen.loop.pred, exact.detach()))
    return terms


def weight(model: WorldModel, batch: Batch) -> Tensor:
    """() what a batch counts in the means of an evaluation: its valid steps, or what is asked for."""
    if not model.is_tokens:
        return batch["num_valid"].clone()
    return torch.where(batch["valid"], batch["reward"], 0.0).sum()


def heads(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """The reward's squared error, and the cross-entropy of whether the episode goes on."""
    reward, proceeds = model.head_outputs(seen.loop.h)
    target = model.reward_norm(seen.batch["reward"].unsqueeze(-1))
    goes_on = 1 - seen.batch["terminated"].to(proceeds.dtype)
    terms = {
        "reward": seen.mean(losses.squared_error(reward.unsqueeze(-1), target)),
        "continue": seen.mean(losses.binary_cross_entropy(proceeds, goes_on)),
    }
    return terms | value(model, seen)


def value(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """What follows a step, against its lambda-return, in rewards' deviations a step; nothing without a value head.

    The return behind step t begins with step t + 1: where that is no transition, or in the next segment, there is none.
    """
    if model.value_discount is None or (behind := model.value(seen.loop.h)) is None:
        return {}
    batch, unit = seen.batch, (1 - model.value_discount) / model.reward_norm.scale
    follows = {name: batch[name][:, 1:] for name in ("reward", "valid")}
    goes_on = ~batch["terminated"]
    target = lambda_returns(
        follows["reward"], behind.detach(), goes_on[:, 1:], model.value_discount, TRACE, follows["valid"]
    )
    error = (behind[:, :-1] - target) * unit
    counts = batch["valid"][:, :-1] & follows["valid"]
    return {"value": losses.masked_mean(error.square(), counts, batch["num_valid"])}


def open_loop(model: WorldModel, seen: Seen, steps: int) -> dict[str, Tensor]:
    """The objective's error of rollouts of `steps` steps that start at every `steps`-th frame."""
    batch, z, action = seen.batch, seen.z[:, :-1], seen.action
    before = previous_states(seen.loop.h, batch["is_first"], seen.start)
    starts_z, starts_h = (rearrange(x[:, ::steps], "b n x -> (b n) x") for x in (z, before))
    actions = rearrange(action, "b (n k) a -> (b n) k a", k=steps)
    pred = model.predictor.open_loop(starts_z, starts_h, actions).pred
    pred = rearrange(pred, "(b n) k z -> b (n k) z", b=len(z))
    if model.hparams["objective"] == "reconstruction":
        error = _obs_error(model, pred, seen.obs[:, 1:])
    else:
        error = losses.squared_error(pred, _target(model, seen))
    unbroken = losses.valid_rollout(batch["valid"], steps)
    return {"open_loop": losses.masked_mean(error, unbroken, batch["num_valid"])}


OBJECTIVES = {"reconstruction": reconstruction, "latent": latent, "tokens": tokens}


def _obs_error(model: WorldModel, z: Tensor, target: Tensor) -> Tensor:
    return losses.observation_error(model.decoder(z), target, model.obs_weights)


def _target(model: WorldModel, seen: Seen) -> Tensor:
    """The latents of the next frames (B, T, Z) that `latent` predicts, without gradient."""
    if model.target_encoder is None:
        return seen.z[:, 1:].detach()
    with torch.no_grad():
        return model.target_encoder(seen.obs[:, 1:])


def _anti_collapse(model: WorldModel, z: Tensor, batch: Batch) -> dict[str, Tensor]:
    if model.hparams["anti_collapse"] == "variance_covariance":
        variance, covariance = losses.variance_covariance(z, batch["valid"], over_ranks)
        return {"variance": variance, "covariance": covariance}
    # Directions from the batch's position, not from the global generator: nothing else that draws numbers
    # (validation, a worker, a restart) can change the training.
    generator = torch.Generator().manual_seed(int(batch["position"]))
    directions = torch.randn(z.shape[-1], 64, generator=generator).to(z)
    return {"sigreg": losses.sigreg(z, batch["valid"], directions, total=over_ranks)}


def over_ranks(x: Tensor) -> Tensor:
    """The sum over all ranks, on each of them; where gradients are averaged over ranks, theirs is that of the sum."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    return all_reduce(x)
