"""What a policy is trained by, as pure functions, unreduced (B, T): `losses.masked_mean` reduces them."""

import torch
from torch import Tensor


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's loss: -min(r A, clip(r, 1 - clip, 1 + clip) A) with r = exp(log_prob - old_log_prob), (B, T) each.

    (Schulman et al. 2017, arXiv 1707.06347, equation 7, with the sign of a loss.)
    """
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """max((v - G)^2, (v_old + clip(v - v_old, -clip, clip) - G)^2) / 2, (B, T) each; clip None: (v - G)^2 / 2.

    A value that has moved by more than `clip` towards its target has no gradient (as in OpenAI's baselines, ppo2).
    """
    error = (value - target).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - target).square())
    return error / 2


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """r - 1 - log r with r = exp(log_prob - old_log_prob), (B, T): never negative, and its mean estimates KL(old, new).

    (Schulman, "Approximating KL divergence", 2020, estimator k3.)
    """
    log_ratio = log_prob - old_log_prob
    return log_ratio.expm1() - log_ratio


def beyond_clip(log_prob: Tensor, old_log_prob: Tensor, clip: float) -> Tensor:
    """1 where the probability ratio has left 1 -+ clip, else 0, (B, T)."""
    return ((log_prob - old_log_prob).expm1().abs() > clip).to(log_prob.dtype)
