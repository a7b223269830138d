"""Planning: sequences of actions that score well, found by drawing many, weighing them, and drawing again.

A plan is a distribution over the actions of the next H steps: `Gaussians` for bounded numbers, `Categoricals` for
choices (one-hot). Two searches improve it, alike but for what a candidate counts:

    cem     the best few count alike, the others nothing (Rubinstein 1999; for models Chua et al. 2018, PETS)
    mppi    each counts exp(score / temperature) (Williams et al. 2017; refitted as in TD-MPC, Hansen et al. 2022)

An objective takes actions (B N, H, A), the N candidates of a lane behind each other, and returns scores (B N,): more is
better. What is drawn persists in time (Pinneri et al. 2020, iCEM): independent draws average out, and move little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
FLOOR = 0.02  # of a choice's probability and, relative to half the range, of a deviation: no search is ever sure


@dataclass(frozen=True)
class Gaussians:
    """Independent normal actions of each step, clamped into [low, high]."""

    mean: Tensor  # (B, H, A)
    std: Tensor  # (B, H, A)
    low: Tensor  # (A,)
    high: Tensor  # (A,)

    @staticmethod
    def fresh(lanes: int, horizon: int, low: Tensor, high: Tensor) -> Gaussians:
        """Around the middle of the bounds (A,), with half of the range as deviation, for B lanes."""
        shape = lanes, horizon, len(low)
        return Gaussians(((low + high) / 2).expand(shape), ((high - low) / 2).expand(shape), low, high)

    @property
    def action(self) -> Tensor:
        """What to do now, (B, A)."""
        return self.mean[:, 0]

    def sample(self, noise: Tensor) -> Tensor:
        """Actions (B, N, H, A) from standard normal noise (B, N, H, A)."""
        made = self.mean.unsqueeze(1) + self.std.unsqueeze(1) * noise
        return made.clamp(self.low, self.high)

    def fitted(self, actions: Tensor, weights: Tensor) -> Gaussians:
        """To actions (B, N, H, A) of weights (B, N), whose sum is 1."""
        mean = torch.einsum("bnha,bn->bha", actions, weights)
        spread = torch.einsum("bnha,bn->bha", (actions - mean.unsqueeze(1)).square(), weights).sqrt()
        return replace(self, mean=mean, std=spread.maximum(FLOOR * (self.high - self.low) / 2))

    def shifted(self, is_first: Tensor) -> Gaussians:
        """The start of the next step's search: one step on, as wide as at first; anew where an episode starts (B,)."""
        fresh = Gaussians.fresh(len(self.mean), self.mean.shape[1], self.low, self.high)
        on = torch.cat([self.mean[:, 1:], fresh.mean[:, :1]], dim=1)
        return replace(fresh, mean=torch.where(is_first[:, None, None], fresh.mean, on))


@dataclass(frozen=True)
class Categoricals:
    """Independent choices of each step; an action is one-hot, or several one-hots behind each other."""

    probabilities: Tensor  # (B, H, A), each choice's sum to 1
    sizes: tuple[int, ...]  # how many there are to choose from; their sum is A

    @staticmethod
    def fresh(lanes: int, horizon: int, sizes: Sequence[int], like: Tensor | None = None) -> Categoricals:
        """Any choice as likely as the others, for B lanes; of the dtype and device of `like`."""
        even = torch.cat([torch.full((size,), 1 / size) for size in sizes])
        even = even if like is None else even.to(like)
        return Categoricals(even.expand(lanes, horizon, -1), tuple(sizes))

    @property
    def action(self) -> Tensor:
        """What to do now, (B, A)."""
        parts = self.probabilities[:, 0].split(self.sizes, dim=-1)
        hot = [torch.nn.functional.one_hot(part.argmax(dim=-1), part.shape[-1]) for part in parts]
        return torch.cat(hot, dim=-1).to(self.probabilities.dtype)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions (B, N, H, A) from standard normal noise (B, N, H, A), of which one entry a choice is used."""
        uniform = (1 + torch.erf(noise / math.sqrt(2))) / 2
        made, first = [], 0
        for part in self.probabilities.unsqueeze(1).split(self.sizes, dim=-1):
            behind = part.cumsum(dim=-1)[..., :-1]  # the last is 1, up to rounding
            chosen = (uniform[..., first : first + 1] > behind).sum(dim=-1)
            made.append(torch.nn.functional.one_hot(chosen, part.shape[-1]))
            first += part.shape[-1]
        return torch.cat(made, dim=-1).to(noise.dtype)

    def fitted(self, actions: Tensor, weights: Tensor) -> Categoricals:
        """To actions (B, N, H, A) of weights (B, N), whose sum is 1."""
        share = torch.einsum("bnha,bn->bha", actions, weights)
        even = Categoricals.fresh(len(share), share.shape[1], self.sizes, share).probabilities
        return replace(self, probabilities=(1 - FLOOR) * share + FLOOR * even)

    def shifted(self, is_first: Tensor) -> Categoricals:
        """The start of the next step's search: one step on, half forgotten; anew where an episode starts (B,)."""
        now = self.probabilities
        even = Categoricals.fresh(len(now), now.shape[1], self.sizes, now).probabilities
        on = torch.cat([now[:, 1:], even[:, :1]], dim=1)
        return replace(self, probabilities=torch.where(is_first[:, None, None], even, (on + even) / 2))


Plan = Gaussians | Categoricals


def cem(
    objective: Objective,
    plan: Plan,
    generator: torch.Generator,
    candidates: int = 200,
    elites: int = 20,
    iterations: int = 4,
    persistence: float = 0.5,
) -> Plan:
    """The plan fitted to the best of its candidates, again and again.

    Args:
        objective: actions (B N, H, A) -> scores (B N,).
        plan: to start from, of B lanes.
        generator: of all that is drawn.
        candidates: N, a lane and iteration.
        elites: how many of them are the best.
        iterations: of drawing and fitting.
        persistence: correlation of what is drawn at neighbouring steps.
    """
    return _search(objective, plan, lambda s: elite_weights(s, elites), generator, candidates, iterations, persistence)


def mppi(
    objective: Objective,
    plan: Plan,
    generator: torch.Generator,
    candidates: int = 200,
    temperature: float = 0.3,
    iterations: int = 4,
    persistence: float = 0.5,
) -> Plan:
    """The plan fitted to all of its candidates, each by its `softmax_weights`; the arguments are those of `cem`."""

    def weigh(scores: Tensor) -> Tensor:
        return softmax_weights(scores, temperature)

    return _search(objective, plan, weigh, generator, candidates, iterations, persistence)


def elite_weights(scores: Tensor, elites: int) -> Tensor:
    """(B, N) -> (B, N): one part each for the best `elites` of a lane, nothing for the others."""
    best = scores.topk(min(elites, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores).scatter_(1, best, 1 / best.shape[1])


def softmax_weights(scores: Tensor, temperature: float) -> Tensor:
    """(B, N) -> (B, N): exp(score / temperature), normalised.

    The temperature is in standard deviations of the lane's scores: a reward in other units gives the same plan.
    """
    spread = scores.std(dim=1, keepdim=True, correction=0)
    return ((scores - scores.amax(dim=1, keepdim=True)) / (temperature * spread).clamp(min=1e-12)).softmax(dim=1)


def expected_return(reward: Tensor, proceeds: Tensor, discount: float = 1.0, value: Tensor | None = None) -> Tensor:
    """What a rollout earns while its episode goes on: sum over k of discount^k (c_0 ... c_{k-1}) r_k.

    Args:
        reward: (..., H).
        proceeds: (..., H), c_k: the probability that step k does not end in a terminal state.
        discount: a step.
        value: (...), what follows the last step where the episode goes on behind it; None: nothing.
    """
    weight = torch.cat([torch.ones_like(proceeds[..., :1]), discount * proceeds], dim=-1).cumprod(dim=-1)
    earned = (weight[..., :-1] * reward).sum(dim=-1)
    return earned if value is None else earned + weight[..., -1] * value


def _search(
    objective: Objective,
    plan: Plan,
    weigh: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    candidates: int,
    iterations: int,
    persistence: float,
) -> Plan:
    like = plan.mean if isinstance(plan, Gaussians) else plan.probabilities
    for _ in range(iterations):
        noise = _persistent_noise(like, candidates, persistence, generator)
        actions = plan.sample(noise)
        scores = objective(actions.flatten(0, 1)).unflatten(0, (-1, candidates))
        plan = plan.fitted(actions, weigh(_finite(scores)))
    return plan


def _persistent_noise(like: Tensor, candidates: int, persistence: float, generator: torch.Generator) -> Tensor:
    """Standard normal (B, N, H, A), an AR(1) process over the steps; the first candidate is the plan's middle, 0."""
    lanes, horizon, entries = like.shape
    shape = horizon, lanes, candidates, entries
    drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    made = [drawn[0]]
    for fresh in drawn[1:]:
        made.append(persistence * made[-1] + math.sqrt(1 - persistence**2) * fresh)
    noise = torch.stack(made, dim=2)
    noise[:, 0] = 0.0
    return noise


def _finite(scores: Tensor) -> Tensor:
    """A candidate whose rollout diverged is as bad as its lane's worst (B, N)."""
    finite = scores.isfinite()
    worst = torch.where(finite, scores, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(finite, scores, torch.where(worst.isfinite(), worst, 0.0))
