"""Layers inside a loop over time: what a step does, and the gradients of all steps at once.

Of K members side by side every (T, B, ...) here is (T, K, B, ...), and weights have their axis in front.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.nets import over_lanes

EPSILON = 1e-5  # of torch's layer_norm
ROWS = (0, -2)  # the axes of steps and lanes
_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default


class Block:
    """W silu(LayerNorm(x) scale + shift) + b, one step at a time.

    Args:
        weights: scale, shift, W and b.
        before: a buffer (T, B, D) of x, which the caller fills.
        after: a buffer (T, B, P) for the results.
    """

    def __init__(self, weights: Sequence[Tensor], before: Tensor, after: Tensor) -> None:
        self._scale, self._shift, matrix, bias = weights
        self._matrix, self._bias, self._steps = matrix.mT, over_lanes(bias), by_step(before, after)

    def __call__(self, t: int) -> None:
        (x, out), scale, shift = self._steps[t], self._scale, self._shift
        if scale.ndim == 1:
            normed = F.layer_norm(x, x.shape[-1:], scale, shift, EPSILON)
        else:
            normed = F.layer_norm(x, x.shape[-1:], None, None, EPSILON).mul_(over_lanes(scale)).add_(over_lanes(shift))
        addmm(self._bias, F.silu(normed, inplace=True), self._matrix, out)


class BlockBackward:
    """The backward pass of `Block`.

    Args:
        weights: as there.
        before: what is in that buffer.
    """

    def __init__(self, weights: Sequence[Tensor], before: Tensor) -> None:
        self._before, (self._scale, self._shift, self._matrix, _) = before, weights
        affine = (self._scale, self._shift) if self._scale.ndim == 1 else (None, None)
        scaled, self._mean, self._rstd = torch.native_layer_norm(before, before.shape[-1:], *affine, EPSILON)
        if self._scale.ndim > 1:
            scaled = torch.addcmul(over_lanes(self._shift), scaled, over_lanes(self._scale))
        sigmoid = torch.sigmoid(scaled)
        self._active = scaled.mul_(sigmoid)
        slope = torch.lerp(self._active, scaled.new_ones(()), sigmoid, out=sigmoid)  # of silu
        self._grad_scaled, self._grads = torch.empty_like(slope), [slope] * len(slope)
        self._steps = by_step(before, self._mean, self._rstd, slope, self._grad_scaled)

    def __call__(self, t: int, grad: Tensor) -> Tensor:
        """Of x at step t (B, D), from that of the result (B, P)."""
        x, mean, rstd, slope, grad_scaled = self._steps[t]
        torch.mul(grad @ self._matrix, slope, out=grad_scaled)
        if self._scale.ndim == 1:
            self._grads[t] = norm_backward(grad_scaled, x, mean, rstd, self._scale)
        else:
            self._grads[t] = norm_backward(grad_scaled * over_lanes(self._scale), x, mean, rstd)
        return self._grads[t]

    def gradients(self, grads: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of x (T, B, D) and of the weights, from those of the results (T, B, P), after all steps."""
        given, x = self._grad_scaled, self._before
        if self._scale.ndim == 1:
            weights, wanted = (self._scale, self._shift), [False, True, True]
            _, *own = _NORM_BACKWARD(given, x, x.shape[-1:], self._mean, self._rstd, *weights, wanted)
        else:
            own = [(given * (x - self._mean) * self._rstd).sum(ROWS), given.sum(ROWS)]
        return stacked(self._grads), [*own, rows(grads).mT @ rows(self._active), grads.sum(ROWS)]


def norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor | None = None) -> Tensor:
    """dL/dx of native_layer_norm (B, D), from what it returned beside its result."""
    return _NORM_BACKWARD(grad, x, x.shape[-1:], mean, rstd, scale, None, [True, False, False])[0]


def addmm(bias: Tensor, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """bias + x weight, of each member where there are several."""
    return (torch.addmm if weight.ndim == 2 else torch.baddbmm)(bias, x, weight, out=out)


def buffer(x: Tensor, width: int) -> Tensor:
    """An empty tensor (T, B, width), of members with all steps and lanes of one together."""
    if x.ndim == 3:
        return x.new_empty(*x.shape[:-1], width)
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2], width).transpose(0, 1)


def stacked(steps: Sequence[Tensor]) -> Tensor:
    """Steps (B, X) as (T, B, X), in such a layout."""
    return torch.stack(list(steps)) if steps[0].ndim == 2 else torch.stack(list(steps), dim=1).transpose(0, 1)


def rows(x: Tensor) -> Tensor:
    """(T, B, X) -> (T B, X); (T, K, B, X) -> (K, T B, X)."""
    return x.flatten(0, 1) if x.ndim == 3 else x.transpose(0, 1).flatten(1, 2)


def by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The steps of tensors (T, ...), side by side."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))
