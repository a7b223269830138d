"""Distributions over the actions of a Gymnasium space, from a policy's outputs.

An action has three forms. As drawn, (..., K): one whole number for each discrete factor, or a Box's numbers on a
normalised scale. As features, (..., A): the input of cells and world models, as `data.spaces.features` makes it from a
recorded action. And as the environment takes it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import UserError


class Categorical:
    """Independent choices, one for each factor.

    Args:
        logits: (..., P), of all factors one after the other.
        sizes: number of choices of each factor, with sum P.
        mask: (..., P) bool, the valid choices; others get probability 0, and their logits no gradient. A factor without
            any valid choice (a board after the last move) counts as not masked. None: all are valid.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int], mask: Tensor | None = None) -> None:
        if mask is not None:  # not -inf, which times a probability of 0 is NaN
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        self.log_probs = [part.log_softmax(dim=-1) for part in logits.split(list(sizes), dim=-1)]  # (..., size) each

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(..., K) int64, without gradient."""
        return torch.stack([_draw(part.detach().exp(), generator) for part in self.log_probs], dim=-1)

    @property
    def mode(self) -> Tensor:
        """The most likely choice of each factor, (..., K) int64."""
        return torch.stack([part.argmax(dim=-1) for part in self.log_probs], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """(..., K) -> (...), in nats."""
        chosen = zip(self.log_probs, action.unbind(dim=-1), strict=True)
        parts = [part.gather(-1, choice.unsqueeze(-1)).squeeze(-1) for part, choice in chosen]
        return torch.stack(parts).sum(dim=0)

    def entropy(self) -> Tensor:
        """(...), in nats."""
        return torch.stack([-(part.exp() * part).sum(dim=-1) for part in self.log_probs]).sum(dim=0)


class Gaussian:
    """A normal distribution with a diagonal covariance.

    Args:
        mean: (..., K).
        log_std: (..., K) or (K,).
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(..., K); differentiable in mean and log_std."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    @property
    def mode(self) -> Tensor:
        """The mean, (..., K)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """(..., K) -> (...), of the density, in nats."""
        deviation = (action - self.mean) * (-self.log_std).exp()
        return -(deviation.square() / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(dim=-1)

    def entropy(self) -> Tensor:
        """(...), differential, in nats."""
        return (self.log_std + (1 + math.log(2 * math.pi)) / 2).expand_as(self.mean).sum(dim=-1)


class ActionSpace(nn.Module):
    """The actions of one space. It has no weights, and its buffers are not saved.

    Discrete, MultiDiscrete and MultiBinary are `Categorical`. A Box is `Gaussian` on a scale where its bounds are -1
    and 1 (an entry without both bounds keeps its own units); actions beyond them are clipped for the environment.

    Args:
        space: as `data.spaces.describe` returns it: {"type": "Discrete", "n": 2, "start": 0}.

    Raises:
        UserError: for another type of space.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self, space: Mapping[str, Any]) -> None:
        super().__init__()
        self.space = dict(space)
        self.sizes: list[int] = []  # number of choices of each factor; empty for a Box
        match space["type"]:
            case "Discrete":
                self.sizes, self.shape = [space["n"]], ()
            case "MultiDiscrete":
                nvec = torch.tensor(space["nvec"])
                self.sizes, self.shape = nvec.flatten().tolist(), tuple(nvec.shape)
            case "MultiBinary":
                self.shape = tuple(space["shape"])
                self.sizes = [2] * math.prod(self.shape)
            case "Box":
                self.shape = tuple(space["shape"])
            case other:
                raise UserError(f"a policy cannot act in a {other} space: Box, Discrete, MultiDiscrete, MultiBinary")
        self.is_box = not self.sizes
        self.num_outputs = sum(self.sizes) or 2 * math.prod(self.shape)  # P: logits, or means and log-deviations
        binary = space["type"] == "MultiBinary"
        self.dim = len(self.sizes) if binary else sum(self.sizes) or math.prod(self.shape)  # A, of the features
        if self.is_box:
            self._take_bounds()

    def _take_bounds(self) -> None:
        size = math.prod(self.shape)
        for name, beyond in (("low", -math.inf), ("high", math.inf)):
            given = self.space.get(name)
            listed = given if isinstance(given, list) else [given] * size
            bounds = torch.tensor([beyond if bound is None else bound for bound in listed], dtype=torch.float32)
            self.register_buffer(name, bounds, persistent=False)
        bounded = self.low.isfinite() & self.high.isfinite()
        self.register_buffer("middle", torch.where(bounded, (self.low + self.high) / 2, 0.0), persistent=False)
        self.register_buffer("half_range", torch.where(bounded, (self.high - self.low) / 2, 1.0), persistent=False)

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Categorical | Gaussian:
        """Of outputs (..., P): logits, or means and then log-deviations; mask (..., P) bool of the valid choices."""
        if self.is_box:
            return Gaussian(*outputs.chunk(2, dim=-1))
        return Categorical(outputs, self.sizes, mask)

    def features(self, action: Tensor) -> Tensor:
        """The input of cells and models, (..., K) as drawn -> (..., A) float; a Box's in its own units, clipped."""
        if self.is_box:
            return self._clipped(action)
        if self.space["type"] == "MultiBinary":
            return action.to(torch.get_default_dtype())
        hot = [F.one_hot(part, size) for part, size in zip(action.unbind(dim=-1), self.sizes, strict=True)]
        return torch.cat(hot, dim=-1).to(torch.get_default_dtype())

    def to_env(self, action: Tensor) -> Tensor:
        """The environment's actions, (..., K) as drawn -> (..., *shape)."""
        values = self._clipped(action) if self.is_box else action + self.space.get("start", 0)
        return values.reshape(*action.shape[:-1], *self.shape)

    def _clipped(self, action: Tensor) -> Tensor:
        return (self.middle + self.half_range * action).clamp(self.low, self.high)


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from probabilities (..., size) -> (...): the first of exponential clocks with these rates."""
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(dim=-1)
