"""Losses as pure functions: unreduced errors (B, T), `masked_mean` to reduce them, scalar terms against collapse."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Total = Callable[[Tensor], Tensor]
NONE = 1e-9  # instead of a count of 0, whose sum is 0 too


def alone(x: Tensor) -> Tensor:
    """The sum over all ranks, where there is one."""
    return x


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over the last axis of (pred - target)^2: (B, T, X), (B, T, X) -> (B, T)."""
    return (pred - target).square().mean(dim=-1)


def observation_error(pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Sum over the last axis of weights (pred - target)^2: (B, T, O), (B, T, O), (O,) -> (B, T); see part_weights."""
    return ((pred - target).square() * weights).sum(dim=-1)


def part_weights(obs_dim: int, images: Sequence[tuple[int, int, int]]) -> Tensor:
    """(O,) weights of the entries of an observation, which sum to 1.

    The vector and each image (H, W, C) count alike, however many entries they have: the mean over an image's pixels
    stands beside the mean over the vector's entries.
    """
    sizes = [math.prod(shape) for shape in images]
    sizes = [size for size in (obs_dim - sum(sizes), *sizes) if size]
    return torch.cat([torch.full((size,), 1 / (len(sizes) * size)) for size in sizes])


def binary_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """-log p(target) for logits and {0, 1} targets of one shape (B, T)."""
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log p(target) in nats: logits (B, T, V), one-hot or probabilities (B, T, V) -> (B, T)."""
    return -(logits.log_softmax(dim=-1) * target).sum(dim=-1)


def masked_mean(error: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Sum of `error` (B, T) where `valid` (B, T), over `count` (): what is masked adds nothing to value or gradient.

    (`error` must be finite there for the gradient, as it is in padding, which is zeros.)

    With `count` the valid steps of all ranks divided by the number of ranks, the ranks' gradients average to the
    gradient of the mean over all steps of all ranks. It may be a fraction, where there are fewer steps than ranks.
    """
    return torch.where(valid, error, torch.zeros_like(error)).sum() / count.clamp(min=NONE)


def valid_rollout(valid: Tensor, steps: int) -> Tensor:
    """Where rollouts that start at every `steps`-th frame have not met an episode's end: (B, T) -> (B, T) bool."""
    chunks = valid.unflatten(1, (-1, steps))
    return chunks.cumprod(dim=-1).flatten(1).bool()


def variance_covariance(z: Tensor, valid: Tensor, total: Total = alone) -> tuple[Tensor, Tensor]:
    """VICReg's terms against collapse (Bardes, Ponce & LeCun 2022, equations 1-4), over valid steps: z (B, T, Z).

    Args:
        z: (B, T, Z).
        valid: (B, T) bool.
        total: sums over all ranks; the terms are then those of the whole batch, on each of them.

    Returns:
        variance: mean over entries of max(0, 1 - std), 0 once every entry has spread 1.
        covariance: sum of squared off-diagonal covariances over Z.
    """
    keep, count = valid.unsqueeze(-1), total(valid.sum())
    mean = total(torch.where(keep, z, 0.0).sum(dim=(0, 1))) / count.clamp(min=1)
    centred = torch.where(keep, z - mean, 0.0).flatten(0, 1)
    covariance = total(centred.T @ centred) / (count - 1).clamp(min=1)
    variances = covariance.diagonal()
    spread = F.relu(1 - (variances + 1e-4).sqrt()).mean()
    return spread, (covariance.square().sum() - variances.square().sum()) / z.shape[-1]


def sigreg(z: Tensor, valid: Tensor, directions: Tensor, knots: int = 17, total: Total = alone) -> Tensor:
    """Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, LeJEPA): how far z is from N(0, I).

    The Epps-Pulley statistic per sample of z's projections on unit directions: the squared difference between the
    empirical characteristic function and exp(-t^2 / 2), weighted by exp(-t^2 / 2), integrated over t in [-4, 4].

    Args:
        z: (B, T, Z).
        valid: (B, T) bool.
        directions: (Z, K), drawn from N(0, I).
        knots: of the trapezoid rule on [0, 4]; the integrand is even.
        total: sums over all ranks, as in variance_covariance.
    """
    t = torch.linspace(0, 4, knots, dtype=z.dtype, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    phase = (z @ F.normalize(directions, dim=0)).unsqueeze(-1) * t  # (B, T, K, knots)
    weight = (valid / total(valid.sum()).clamp(min=1)).to(z.dtype)
    real, imaginary = (total(torch.einsum("bt,btkn->kn", weight, part)) for part in (phase.cos(), phase.sin()))
    difference = (real - gauss).square() + imaginary.square()
    return 2 * torch.trapezoid(difference * gauss, t, dim=-1).mean()
