"""The two passes of each rule that has them: a step forward in a loop, and the pull back through a whole segment.

Their proposals come from one matmul a step (layers.py). Of K members side by side every (T, B, ...) here is
(T, K, B, ...).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel import rules
from worldmodel.cells.fused.layers import EPSILON, by_step, norm_backward

HUGEST = 1e15  # of a candidate that is normalised: see rules.gated_norm

Step = Callable[[int, Tensor, Tensor], object]
Pull = Callable[[int, Tensor], Tensor | None]


class Passes(NamedTuple):
    """The two passes of a rule of rules.py.

    `forward` takes a segment's proposals (T, B, P) and returns a `Step`: (t, h, out) writes h_next to `out`, and may
    overwrite proposals with what the backward pass wants instead (alpha, where the gate was). `backward` takes the
    states before the steps (T, B, D), the proposals, the states after the steps and a buffer for the proposals'
    gradients, and returns a `Pull`: (t, dL/dh_t) writes to that buffer, and returns the rest of dL/dh_(t-1); None: 0.
    Where a state is wider than what is read of it, it leaves the entries that are read to the caller.
    """

    forward: Callable[[Tensor], Step]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Pull]
    # The last proposal comes from the input alone: its sum and that of the recurrent matmul, which is the first one,
    # are kept apart.
    apart: bool = False
    states: int = 1  # vectors that the state packs, of which the first is read


def _residual(proposals: Tensor) -> Step:
    steps = proposals.unbind()
    return lambda t, h, out: torch.add(h, steps[t], out=out)


def _residual_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    steps = grads.unbind()
    return lambda t, grad: steps[t].copy_(grad)


def _direct(proposals: Tensor) -> Step:
    steps = proposals.unbind()
    return lambda t, h, out: out.copy_(steps[t])


def _direct_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    steps = grads.unbind()

    def pull(t: int, grad: Tensor) -> None:
        steps[t].copy_(grad)

    return pull


def _gated(proposals: Tensor, norm: bool = False) -> Step:
    steps, width = by_step(*proposals.chunk(2, dim=-1)), [proposals.shape[-1] // 2]
    bound = (width[0] - 1) ** 0.5

    def step(t: int, h: Tensor, out: Tensor) -> None:
        gate, value = steps[t]
        if norm:  # the clamp also makes it contiguous, which LayerNorm would do otherwise
            value = torch.native_layer_norm(value.clamp(-HUGEST, HUGEST), width, None, None, EPSILON)[0]
            value.clamp_(-bound, bound)
        torch.lerp(h, value, gate.sigmoid_(), out=out)

    return step


def _gated_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor, norm: bool = False) -> Pull:
    alpha, value = proposals.chunk(2, dim=-1)
    keep, of_norm = 1 - alpha, (alpha,) * 3
    if norm:
        # the clamps cut nothing that is not zero up to rounding: LayerNorm's Jacobian vanishes at the bound, and is
        # below 1e-13 beyond 1e15
        clamped = value.clamp(-HUGEST, HUGEST)
        value, mean, rstd = torch.native_layer_norm(clamped, [value.shape[-1]], None, None, EPSILON)
        of_norm = clamped, mean, rstd
    by_gate = (value - before).mul_(alpha).mul_(keep)
    steps = by_step(by_gate, keep, alpha, *grads.chunk(2, dim=-1), *of_norm)

    def pull(t: int, grad: Tensor) -> Tensor:
        by_gate, keep, alpha, grad_gate, grad_candidate, *of_norm = steps[t]
        torch.mul(grad, by_gate, out=grad_gate)
        if norm:
            grad_candidate.copy_(norm_backward(grad * alpha, *of_norm))
        else:
            torch.mul(grad, alpha, out=grad_candidate)
        return grad * keep

    return pull


def _unit_norm(proposals: Tensor) -> Step:
    steps = proposals.unbind()
    return lambda t, h, out: out.copy_(rules.unit_norm(h, steps[t]))


def _unit_norm_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    length = (before + proposals).norm(dim=-1, keepdim=True)
    floor = 1e-12  # of F.normalize; below it the length is a constant
    steps = by_step(after.masked_fill(length < floor, 0.0), length.clamp(min=floor).reciprocal(), grads)

    def pull(t: int, grad: Tensor) -> Tensor:
        radial, shrink, out = steps[t]
        along = (grad * radial).sum(dim=-1, keepdim=True)
        return torch.mul(torch.addcmul(grad, radial, along, value=-1), shrink, out=out)

    return pull


def _gru(proposals: Tensor) -> Step:
    width = proposals.shape[-1] // 4
    hidden, gates, value = proposals.split([width, 2 * width, width], dim=-1)
    steps = by_step(hidden, gates, *gates.chunk(2, dim=-1), value)

    def step(t: int, h: Tensor, out: Tensor) -> None:
        hidden, gates, reset, keep, value = steps[t]
        gates.sigmoid_()
        torch.addcmul(value, reset, hidden, out=value).tanh_()
        torch.lerp(value, h, keep, out=out)

    return step


def _gru_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    hidden, reset, keep, value = proposals.chunk(4, dim=-1)
    by_value = (1 - keep) * (1 - value.square())
    by_hidden, by_keep = by_value * reset, (before - value).mul_(keep).mul_(1 - keep)
    by_each = torch.cat([by_hidden, by_hidden * hidden * (1 - reset), by_keep, by_value], dim=-1)
    steps = by_step(by_each.unflatten(-1, (4, -1)), keep, grads.unflatten(-1, (4, -1)))

    def pull(t: int, grad: Tensor) -> Tensor:
        by_each, keep, out = steps[t]
        torch.mul(grad.unsqueeze(-2), by_each, out=out)
        return grad * keep

    return pull


def _lstm(proposals: Tensor) -> Step:
    width = proposals.shape[-1] // 4
    gates, value, shown = proposals.split([2 * width, width, width], dim=-1)
    steps = by_step(gates, *gates.chunk(2, dim=-1), value, shown)

    def step(t: int, h: Tensor, out: Tensor) -> None:
        gates, write, keep, value, shown = steps[t]
        hidden, cell = out.split(width, dim=-1)
        gates.sigmoid_()
        torch.mul(keep, h[..., width:], out=cell).addcmul_(write, value.tanh_())
        torch.mul(shown.sigmoid_(), cell.tanh(), out=hidden)

    return step


def _lstm_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    write, keep, value, shown = proposals.chunk(4, dim=-1)
    (_, cell_before), squashed = before.chunk(2, dim=-1), after.chunk(2, dim=-1)[1].tanh()
    by_write, by_keep = write * (1 - write) * value, keep * (1 - keep) * cell_before
    by_each = torch.cat([by_write, by_keep, write * (1 - value.square())], dim=-1).unflatten(-1, (3, -1))
    by_shown, by_cell = squashed * shown * (1 - shown), shown * (1 - squashed.square())
    width = keep.shape[-1]
    of_cell, of_shown = grads.split([3 * width, width], dim=-1)
    steps = by_step(by_each, by_shown, by_cell, keep, of_cell.unflatten(-1, (3, -1)), of_shown)

    def pull(t: int, grad: Tensor) -> Tensor:
        by_each, by_shown, by_cell, keep, of_cell, of_shown = steps[t]
        grad_hidden, grad_cell = grad.split(width, dim=-1)
        total = torch.addcmul(grad_cell, grad_hidden, by_cell)
        torch.mul(total.unsqueeze(-2), by_each, out=of_cell)
        torch.mul(grad_hidden, by_shown, out=of_shown)
        rest = torch.empty_like(grad)
        torch.mul(total, keep, out=rest[..., width:])
        return rest

    return pull


FUSED: dict[rules.Rule, Passes] = {
    rules.residual: Passes(_residual, _residual_backward),
    rules.gated: Passes(_gated, _gated_backward),
    rules.gated_norm: Passes(partial(_gated, norm=True), partial(_gated_backward, norm=True)),
    rules.direct: Passes(_direct, _direct_backward),
    rules.unit_norm: Passes(_unit_norm, _unit_norm_backward),
    rules.gru: Passes(_gru, _gru_backward, apart=True),
    rules.lstm: Passes(_lstm, _lstm_backward, states=2),
}
