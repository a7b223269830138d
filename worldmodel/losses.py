"""Losses and returns as pure functions: unreduced errors (B, T), `masked_mean` to reduce them, terms against collapse.

Step t goes from frame t to frame t + 1 (see batch.py), so there are T rewards and T + 1 values. An episode that is
truncated ends with a step that continues: the value of its last frame stands for what would have come. One that
terminates does not. The step after an episode's end is not valid: no return passes over it.
"""

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

    The vector and each image (H, W, C) count alike, however many entries they have.
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
    """Sum of `error` (B, T) where `valid` (B, T), divided by `count` (); no masked error adds to the gradient.

    (`error` must be finite there for the gradient, as it is in padding, which is zeros.) With `count` the valid steps
    of all ranks divided by the number of ranks, the ranks' gradients average to the gradient of the mean over all steps
    of all ranks. It may be a fraction, where there are fewer steps than ranks.
    """
    return torch.where(valid, error, torch.zeros_like(error)).sum() / count.clamp(min=NONE)


def valid_rollout(valid: Tensor, steps: int) -> Tensor:
    """Where rollouts that start at every `steps`-th frame have not met an episode's end: (B, T) -> (B, T) bool."""
    chunks = valid.unflatten(1, (-1, steps))
    return chunks.cumprod(dim=-1).flatten(1).bool()


def variance_covariance(z: Tensor, valid: Tensor, total: Total = alone) -> tuple[Tensor, Tensor]:
    """VICReg's terms against collapse (Bardes, Ponce & LeCun 2022, equations 1-4): z (B, T, Z), valid (B, T) -> (), ().

    Variance: the mean over entries of max(0, 1 - std), 0 once every entry has spread 1. Covariance: the sum of squared
    off-diagonal covariances over Z. `total` sums over all ranks; the terms are then those of the whole batch.
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
    z (B, T, Z), valid (B, T), directions (Z, K) drawn from N(0, I) -> (). The integral takes the trapezoid rule with
    `knots` on [0, 4], as the integrand is even; `total` sums over all ranks.
    """
    t = torch.linspace(0, 4, knots, dtype=z.dtype, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    phase = (z @ F.normalize(directions, dim=0)).unsqueeze(-1) * t  # (B, T, K, knots)
    weight = (valid / total(valid.sum()).clamp(min=1)).to(z.dtype)
    real, imaginary = (total(torch.einsum("bt,btkn->kn", weight, part)) for part in (phase.cos(), phase.sin()))
    difference = (real - gauss).square() + imaginary.square()
    return 2 * torch.trapezoid(difference * gauss, t, dim=-1).mean()


def lambda_returns(
    reward: Tensor, value: Tensor, continues: Tensor, discount: float, lambda_: float, valid: Tensor | None = None
) -> Tensor:
    """The lambda-return of every step, between the one-step target (lambda 0) and all rewards to come (lambda 1).

        G_t = r_t + discount c_t ((1 - lambda) v_{t+1} + lambda G_{t+1}),   G_t = v_t where t is T or not valid

    (Sutton & Barto 2018, equation 12.20 with the value of the state; Hafner et al. 2020, arXiv 1912.01603, equation 6.)

    reward (B, T), value (B, T + 1) of the frames, valid (B, T) bool (None: all) -> (B, T). `continues` (B, T), c_t, is
    the probability that the step does not end in a terminal state; or bool.
    """
    discounts = discount * continues.to(value.dtype)
    returns, after = [], value[:, -1]
    for t in reversed(range(reward.shape[1])):
        target = (1 - lambda_) * value[:, t + 1] + lambda_ * after
        after = reward[:, t] + discounts[:, t] * target
        if valid is not None:
            after = torch.where(valid[:, t], after, value[:, t])
        returns.append(after)
    return torch.stack(returns[::-1], dim=1)


def gae(reward: Tensor, value: Tensor, continues: Tensor, valid: Tensor, discount: float, lambda_: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16), (B, T).

        A_t = d_t + discount lambda c_t A_{t+1},   d_t = r_t + discount c_t v_{t+1} - v_t,   A_t = 0 where not valid

    The lambda-return minus the value: A_t + v_t is the critic's target. Arguments as in `lambda_returns`.
    """
    return lambda_returns(reward, value, continues, discount, lambda_, valid) - value[:, :-1]


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """PPO's loss: -min(r A, clip(r, 1 - c, 1 + c) A) with r = exp(log_prob - old_log_prob), (B, T) each.

    (Schulman et al. 2017, arXiv 1707.06347, equation 7, with the sign of a loss.)
    """
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip_coef: float | None) -> Tensor:
    """max((v - G)^2, (v_old + clip(v - v_old, -c, c) - G)^2) / 2, (B, T) each; clip_coef None: (v - G)^2 / 2.

    A value that has moved by more than `clip_coef` towards its target has no gradient (as in OpenAI's baselines, ppo2).
    """
    error = (value - target).square()
    if clip_coef is not None:
        near = old_value + (value - old_value).clamp(-clip_coef, clip_coef)
        error = torch.maximum(error, (near - target).square())
    return error / 2


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """r - 1 - log r with r = exp(log_prob - old_log_prob), (B, T): never negative, and its mean estimates KL(old, new).

    (Schulman, "Approximating KL divergence", 2020, estimator k3.)
    """
    log_ratio = log_prob - old_log_prob
    return log_ratio.expm1() - log_ratio


def beyond_clip(log_prob: Tensor, old_log_prob: Tensor, clip_coef: float) -> Tensor:
    """1 where the probability ratio is outside 1 -+ clip_coef, else 0, (B, T)."""
    return ((log_prob - old_log_prob).expm1().abs() > clip_coef).to(log_prob.dtype)
