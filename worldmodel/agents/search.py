"""Sampling-based planning: draw sequences of actions, weigh them by their scores, refit the plan, and repeat.

A plan is a distribution over the actions of the next H steps: `Gaussians` for bounded numbers, `Categoricals` for
choices (one-hot). Two methods improve it, which differ in the weights of candidates:

    cem     equal weights for the best few (Rubinstein 1999; for models Chua et al. 2018, PETS)
    mppi    exp(score / temperature) (Williams et al. 2017; refitted as in TD-MPC, Hansen et al. 2022)

An objective takes actions (B N, H, A), the N candidates of a lane one after the other, and returns scores (B N,), which
are maximised. Noise persists in time (Pinneri et al. 2020, iCEM): independent draws average out and move little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
FLOOR = 0.02  # minimum of a choice's probability, and of a deviation relative to half the range


@dataclass(frozen=True)
class Gaussians:
    """Independent normal actions of each step, clamped into [low, high]."""

    mean: Tensor  # (B, H, A)
    std: Tensor  # (B, H, A)
    low: Tensor  # (A,)
    high: Tensor  # (A,)

    @staticmethod
    def fresh(lanes: int, horizon: int, low: Tensor, high: Tensor) -> Gaussians:
        """The first plan of B lanes: the middle of the bounds (A,), with half the range as deviation."""
        shape = lanes, horizon, len(low)
        return Gaussians(((low + high) / 2).expand(shape), ((high - low) / 2).expand(shape), low, high)

    @property
    def action(self) -> Tensor:
        """The next action, (B, A)."""
        return self.mean[:, 0]

    def sample(self, noise: Tensor) -> Tensor:
        """Actions (B, N, H, A) from standard normal noise (B, N, H, A)."""
        return (self.mean.unsqueeze(1) + self.std.unsqueeze(1) * noise).clamp(self.low, self.high)

    def fitted(self, actions: Tensor, weights: Tensor) -> Gaussians:
        """Fit the plan to actions (B, N, H, A) with weights (B, N), which sum to 1."""
        mean = torch.einsum("bnha,bn->bha", actions, weights)
        spread = torch.einsum("bnha,bn->bha", (actions - mean.unsqueeze(1)).square(), weights).sqrt()
        return replace(self, mean=mean, std=spread.maximum(FLOOR * (self.high - self.low) / 2))

    def shifted(self, is_first: Tensor) -> Gaussians:
        """The start of the next search: shifted by one step, as wide as a fresh plan; fresh where `is_first` (B,)."""
        fresh = Gaussians.fresh(len(self.mean), self.mean.shape[1], self.low, self.high)
        shifted = torch.cat([self.mean[:, 1:], fresh.mean[:, :1]], dim=1)
        return replace(fresh, mean=torch.where(is_first[:, None, None], fresh.mean, shifted))


@dataclass(frozen=True)
class Categoricals:
    """Independent choices of each step; an action is one-hot, or several one-hot vectors one after the other."""

    probabilities: Tensor  # (B, H, A), those of each choice sum to 1
    sizes: tuple[int, ...]  # number of options of each choice, with sum A

    @staticmethod
    def fresh(lanes: int, horizon: int, sizes: Sequence[int], like: Tensor | None = None) -> Categoricals:
        """The first plan of B lanes: equal probabilities, of the dtype and device of `like`."""
        even = torch.cat([torch.full((size,), 1 / size) for size in sizes])
        even = even if like is None else even.to(like)
        return Categoricals(even.expand(lanes, horizon, -1), tuple(sizes))

    @property
    def action(self) -> Tensor:
        """The next action, (B, A)."""
        parts = self.probabilities[:, 0].split(self.sizes, dim=-1)
        hot = [torch.nn.functional.one_hot(part.argmax(dim=-1), part.shape[-1]) for part in parts]
        return torch.cat(hot, dim=-1).to(self.probabilities.dtype)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions (B, N, H, A) from standard normal noise (B, N, H, A), of which each choice uses one entry."""
        uniform = (1 + torch.erf(noise / math.sqrt(2))) / 2
        hot, first = [], 0
        for part in self.probabilities.unsqueeze(1).split(self.sizes, dim=-1):
            bounds = part.cumsum(dim=-1)[..., :-1]  # the last is 1, up to rounding
            choice = (uniform[..., first : first + 1] > bounds).sum(dim=-1)
            hot.append(torch.nn.functional.one_hot(choice, part.shape[-1]))
            first += part.shape[-1]
        return torch.cat(hot, dim=-1).to(noise.dtype)

    def fitted(self, actions: Tensor, weights: Tensor) -> Categoricals:
        """Fit the plan to actions (B, N, H, A) with weights (B, N), which sum to 1."""
        share = torch.einsum("bnha,bn->bha", actions, weights)
        even = Categoricals.fresh(len(share), share.shape[1], self.sizes, share).probabilities
        return replace(self, probabilities=(1 - FLOOR) * share + FLOOR * even)

    def shifted(self, is_first: Tensor) -> Categoricals:
        """The start of the next search: shifted by one step, half forgotten; fresh where `is_first` (B,)."""
        current = self.probabilities
        even = Categoricals.fresh(len(current), current.shape[1], self.sizes, current).probabilities
        shifted = torch.cat([current[:, 1:], even[:, :1]], dim=1)
        return replace(self, probabilities=torch.where(is_first[:, None, None], even, (shifted + even) / 2))


Plan = Gaussians | Categoricals


def search(
    objective: Objective,
    plan: Plan,
    weights: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    candidates: int = 200,
    iterations: int = 4,
    persistence: float = 0.5,
) -> Plan:
    """Fit the plan to its weighted candidates, repeatedly.

    Args:
        objective: actions (B N, H, A) -> scores (B N,).
        plan: to start from, of B lanes.
        weights: scores (B, N) -> weights (B, N), which sum to 1.
        generator: of the noise.
        candidates: N, for each lane and iteration.
        iterations: number of fits.
        persistence: correlation of the noise at neighbouring steps.
    """
    like = plan.mean if isinstance(plan, Gaussians) else plan.probabilities
    for _ in range(iterations):
        noise = _persistent_noise(like, candidates, persistence, generator)
        actions = plan.sample(noise)
        scores = objective(actions.flatten(0, 1)).unflatten(0, (-1, candidates))
        plan = plan.fitted(actions, weights(_finite(scores)))
    return plan


def elite_weights(scores: Tensor, elites: int) -> Tensor:
    """Of cem, (B, N) -> (B, N): equal weights for the best `elites` scores of a lane, zero for the others."""
    best = scores.topk(min(elites, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores).scatter_(1, best, 1 / best.shape[1])


def softmax_weights(scores: Tensor, temperature: float) -> Tensor:
    """Of mppi, (B, N) -> (B, N): exp(score / temperature), normalised.

    The temperature is in standard deviations of the lane's scores, so the unit of the rewards does not matter.
    """
    spread = scores.std(dim=1, keepdim=True, correction=0)
    return ((scores - scores.amax(dim=1, keepdim=True)) / (temperature * spread).clamp(min=1e-12)).softmax(dim=1)


def expected_return(reward: Tensor, continues: Tensor, discount: float = 1.0, value: Tensor | None = None) -> Tensor:
    """The expected return of a rollout: sum over k of discount^k (c_0 ... c_{k-1}) r_k.

    Args:
        reward: (..., H).
        continues: (..., H), c_k: the probability that step k does not end in a terminal state.
        discount: of each step.
        value: (...), the return after the last step if the episode continues; None: zero.
    """
    weight = torch.cat([torch.ones_like(continues[..., :1]), discount * continues], dim=-1).cumprod(dim=-1)
    rewards = (weight[..., :-1] * reward).sum(dim=-1)
    return rewards if value is None else rewards + weight[..., -1] * value


def _persistent_noise(like: Tensor, candidates: int, persistence: float, generator: torch.Generator) -> Tensor:
    """Standard normal (B, N, H, A), an AR(1) process over the steps; zero for the first candidate, the plan itself."""
    lanes, horizon, entries = like.shape
    shape = horizon, lanes, candidates, entries
    draws = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    steps = [draws[0]]
    for draw in draws[1:]:
        steps.append(persistence * steps[-1] + math.sqrt(1 - persistence**2) * draw)
    noise = torch.stack(steps, dim=2)
    noise[:, 0] = 0.0
    return noise


def _finite(scores: Tensor) -> Tensor:
    """Give a candidate whose rollout diverged the worst score of its lane (B, N)."""
    finite = scores.isfinite()
    worst = torch.where(finite, scores, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(finite, scores, torch.where(worst.isfinite(), worst, 0.0))
