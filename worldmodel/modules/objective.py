"""What a world model is trained for: the terms of its loss on a segment, and their weights.

A term is a mean over the segment's valid steps (), so that ranks average to the mean over all steps of all ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from worldmodel import losses
from worldmodel.batch import Batch
from worldmodel.errors import UserError
from worldmodel.mixture import MixtureHead
from worldmodel.model import Model
from worldmodel.modules.heads import head_terms, value_term
from worldmodel.modules.segment import Segment

ADDED_WEIGHT = 0.01  # small: it decides only where the cross-entropy has nothing to say


class Objective:
    """The terms that all objectives share: heads, value and open-loop rollouts, where the model has them.

    Args:
        hparams: of a WorldModel, whose weights may change during a fit.
    """

    reported: tuple[str, ...] = ()  # terms that are logged, and have no weight

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        self.hparams = hparams

    def weights(self, model: Model) -> dict[str, float]:
        """The weight of each term of the loss."""
        hp, weights = self.hparams, dict[str, float]()
        if model.heads is not None:
            weights |= {"reward": hp["reward_weight"], "continue": hp["continue_weight"]}
        if model.value_head is not None:
            weights["value"] = hp["reward_weight"]
        if model.noise is not None:
            weights["nll"] = 1.0
        return weights | ({"open_loop": hp["open_loop_weight"]} if hp["open_loop_steps"] else {})

    def terms(self, model: Model, segment: Segment) -> dict[str, Tensor]:
        """The terms of the loss, () each, and what is reported."""
        terms = {} if model.heads is None else head_terms(model, segment)
        if model.value_head is not None:
            terms["value"] = value_term(model, segment)
        if steps := self.hparams["open_loop_steps"]:
            terms["open_loop"] = self._open_loop(model, segment, steps)
        return terms

    def error(self, model: Model, segment: Segment, pred: Tensor) -> Tensor:
        """The errors (B, T) of predictions z (B, T, Z)."""
        raise NotImplementedError

    def count(self, batch: Batch) -> Tensor:
        """() what a batch counts in the means of an evaluation: its valid steps."""
        return batch["num_valid"].clone()

    def check_data(self, layout: Any, mean_reward: float | None) -> None:
        """Raise UserError for data that the objective is not for; `mean_reward` where a fit has measured it."""

    def _open_loop(self, model: Model, segment: Segment, steps: int) -> Tensor:
        """The error of rollouts of `steps` steps, one after the other, the last to the segment's end."""
        z, h, action = segment.starts(steps)
        pred = rearrange(model.unroll(z, h, action).pred, "(b n) k z -> b (n k) z", b=len(segment.obs))
        whole = nn.functional.pad(pred, (0, 0, segment.action.shape[1] - pred.shape[1], 0))
        return segment.rollout_mean(segment.rolled(self.error(model, segment, whole), steps))


class Reconstruction(Objective):
    """The predicted latent, decoded, against the next observation; and the decoder on the latents themselves."""

    def weights(self, model: Model) -> dict[str, float]:
        own = {"prediction": 1.0, "autoencoding": 1.0, "consistency": self.hparams["consistency_weight"]}
        return own | super().weights(model)

    def terms(self, model: Model, segment: Segment) -> dict[str, Tensor]:
        pred = segment.loop.pred
        decoded, following = model.decoder(pred), segment.obs[:, 1:]
        own = {
            "prediction": segment.mean(losses.observation_error(decoded, following, segment.obs_weights)),
            "autoencoding": segment.mean(_obs_error(model, segment, segment.seen.z[:, :-1], segment.obs[:, :-1])),
            "consistency": segment.mean(losses.squared_error(pred, segment.target)),
        }
        if model.noise is not None:
            own["nll"] = segment.mean(_nll(model.noise, pred, following - decoded, self.hparams["nll_beta"]))
        return own | super().terms(model, segment)

    def error(self, model: Model, segment: Segment, pred: Tensor) -> Tensor:
        return _obs_error(model, segment, pred, segment.obs[:, 1:])


class Innovation(Objective):
    """The base's corrected prediction against the next observation, in units of the base's error: 1 is no better.

    Open-loop rollouts count in units of the error of the base rolled out alone: so far ahead; without feedback, as far
    as it was measured.
    """

    def weights(self, model: Model) -> dict[str, float]:
        return {"prediction": 1.0} | super().weights(model)

    def terms(self, model: Model, segment: Segment) -> dict[str, Tensor]:
        line = segment.seen.line
        assert line is not None
        missed, pred = (segment.obs[:, 1:] - line.pred) / line.scale, model.decoder(segment.loop.pred)
        own = {"prediction": segment.mean(losses.observation_error(pred, missed, segment.obs_weights))}
        if model.noise is not None:
            nll = _nll(model.noise, segment.loop.pred, missed - pred, self.hparams["nll_beta"])
            own["nll"] = segment.mean(nll + line.scale.log().mean(dim=-1))  # of the normalised observation
        return own | super().terms(model, segment)

    def _open_loop(self, model: Model, segment: Segment, steps: int) -> Tensor:
        base = model.base
        assert base is not None
        if base.feedback:
            pred, unit = model.fed_back(*segment.starts(steps))[0].predictions()
        else:  # a simulation is judged as a whole
            memory = model.unroll(*segment.starts(steps)).pred[..., model.latent_dim :]
            pred, unit = base.corrected(memory), base.drifts[-1]
        missed = (segment.rolled(segment.obs[:, 1:], steps) - pred) / unit
        return segment.rollout_mean((missed.square() * segment.obs_weights).sum(dim=-1))


class Latent(Objective):
    """The predicted latent against the target's; the decoder as a probe without gradient into the model."""

    def weights(self, model: Model) -> dict[str, float]:
        names = ("variance", "covariance") if self.hparams["anti_collapse"] == "variance_covariance" else ("sigreg",)
        own = {"prediction": 1.0, "probe": 1.0, **dict.fromkeys(names, float(self.hparams["anti_collapse_weight"]))}
        return own | super().weights(model)

    def terms(self, model: Model, segment: Segment) -> dict[str, Tensor]:
        z = segment.seen.z[:, :-1]
        own = {
            "prediction": segment.mean(self.error(model, segment, segment.loop.pred)),
            "probe": segment.mean(_obs_error(model, segment, z.detach(), segment.obs[:, :-1])),
        }
        return own | self._anti_collapse(z, segment.batch) | super().terms(model, segment)

    def error(self, model: Model, segment: Segment, pred: Tensor) -> Tensor:
        return losses.squared_error(pred, segment.target)

    def _anti_collapse(self, z: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.hparams["anti_collapse"] == "variance_covariance":
            variance, covariance = losses.variance_covariance(z, batch["valid"], over_ranks)
            return {"variance": variance, "covariance": covariance}
        # Directions from the batch's position, not from the global generator: nothing else that draws numbers
        # (validation, a worker, a restart) can change the training.
        generator = torch.Generator().manual_seed(int(batch["position"]))
        directions = torch.randn(z.shape[-1], 64, generator=generator).to(z)
        return {"sigreg": losses.sigreg(z, batch["valid"], directions, total=over_ranks)}


class Tokens(Objective):
    """Cross-entropy of the next token in nats, and accuracy, over what a sequence task asks for (tasks.sequences).

    A step counts by its reward. In training the sum is divided by what the training data ask for on average, so that
    ranks average to the mean over all; in evaluation by what this batch asks for (`count`). Where the cell has exact
    entries, what they predict alone has a cross-entropy of its own, and what the others add costs its square: once
    nothing is left to add, what they learned before fades, instead of disturbing longer sequences.
    """

    reported = ("accuracy",)

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        super().__init__(hparams)
        if hparams["open_loop_steps"]:
            raise UserError("model.objective tokens does not know model.open_loop_steps: leave it out")

    def weights(self, model: Model) -> dict[str, float]:
        exact = {"exact": 1.0, "added": ADDED_WEIGHT} if model.predictor.cell.exact_dim else {}
        return {"prediction": 1.0} | exact

    def terms(self, model: Model, segment: Segment) -> dict[str, Tensor]:
        batch, loop, following = segment.batch, segment.loop, segment.obs[:, 1:]
        logits = model.decoder(loop.pred)
        mean = model.reward_norm.mean
        if not model.training:
            mean = self.count(batch) / batch["num_valid"].clamp(min=losses.NONE)
        worth = batch["reward"] / mean.clamp(min=1e-9)
        right = logits.argmax(dim=-1) == following.argmax(dim=-1)
        terms = {
            "prediction": segment.mean(losses.cross_entropy(logits, following) * worth),
            "accuracy": segment.mean(right * worth).detach(),
        }
        if (exact := model.predictor.exact_prediction(loop.h)) is not None:
            terms["exact"] = segment.mean(losses.cross_entropy(model.decoder(exact), following) * worth)
            terms["added"] = segment.mean(losses.squared_error(loop.pred, exact.detach()))
        return terms

    def count(self, batch: Batch) -> Tensor:
        """() what a batch counts in the means of an evaluation: what it asks for."""
        return torch.where(batch["valid"], batch["reward"], 0.0).sum()

    def check_data(self, layout: Any, mean_reward: float | None) -> None:
        kinds = [leaf["type"] for leaf in layout.observation_space.values()]
        if kinds != ["Discrete"]:
            raise UserError(
                f"model.objective tokens needs observations that are one Discrete space, not {' and '.join(kinds)}:"
                " choose reconstruction or latent"
            )
        if mean_reward is not None and not mean_reward > 0:
            raise UserError(
                "model.objective tokens takes a step's reward as the weight of its prediction, and the mean reward of"
                " this data is not above 0: choose reconstruction or latent"
            )


OBJECTIVES: dict[str, type[Objective]] = {
    "reconstruction": Reconstruction, "innovation": Innovation, "latent": Latent, "tokens": Tokens,
}  # fmt: skip


def over_ranks(x: Tensor) -> Tensor:
    """The sum over all ranks, on each of them; where gradients are averaged over ranks, theirs is that of the sum."""
    return all_reduce(x) if dist.is_available() and dist.is_initialized() else x


def _obs_error(model: Model, segment: Segment, z: Tensor, obs: Tensor) -> Tensor:
    return losses.observation_error(model.decoder(z), obs, segment.obs_weights)


def _nll(noise: MixtureHead, pred: Tensor, missed: Tensor, beta: float) -> Tensor:
    """-log p of what point predictions missed (B, T, O), in nats an entry, (B, T); the point is the loss's part."""
    return -noise(pred, beta).log_prob(missed.detach()) / missed.shape[-1]
