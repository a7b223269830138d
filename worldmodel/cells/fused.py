"""Fused passes of an `UpdateCell` through time: a segment with its backward pass written out, a rollout without one.

autograd runs a matmul for the weights' gradient at each of T steps, and some ten nodes beside it. Here the loops hold
only what must wait for the step before: all else is computed for the whole segment at once, and the weights' gradient
is one matmul over all steps. Of K members side by side every (T, B, ...) here is (T, K, B, ...). Results equal those of
`recurrence.stepped`, the reference, which serves all other cells, mixed precision, compilation and torch.func.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import UpdateCell
from worldmodel.nets import over_lanes

EPSILON = 1e-5  # of torch's layer_norm
HUGEST = 1e15  # of a candidate that is normalised: see rules.gated_norm

Step = Callable[[int, Tensor, Tensor], object]
Pull = Callable[[int, Tensor], Tensor | None]
Feed = Callable[[Tensor, Tensor], Tensor]  # what a rollout sees next, after a prediction (B, Z) and an action (B, A)


class Passes(NamedTuple):
    """The two passes of a rule of rules.py.

    `forward` takes a segment's proposals (T, B, P) and returns a `Step`: (t, h, out) writes h_next to `out`, and may
    overwrite proposals with what the backward pass wants instead (alpha, where the gate was). `backward` takes the
    states before the steps (T, B, D), the proposals, the states after the steps and a buffer for the proposals'
    gradients, and returns a `Pull`: (t, dL/dh_t) writes to that buffer, and returns the rest of dL/dh_(t-1); None: 0.
    """

    forward: Callable[[Tensor], Step]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Pull]
    # The candidate is normalised, and its gradient keeps a mean, which the Jacobian of a norm removes: within the loop
    # `_centred` weights do, and one subtraction for all steps after it.
    centres: bool = False


def has_fused(cell: nn.Module) -> TypeGuard[UpdateCell]:
    """Whether `fused_states` and `fused_rollout` take this cell."""
    return isinstance(cell, UpdateCell) and cell.rule in FUSED


def fused_states(cell: UpdateCell, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
    """The states of a segment, (T, B, D): x (T, B, X) from `project`, h (B, D), a reset before each is_first (T, B).

    Differentiable once, in x, h and the cell's weights.
    """
    return _Unroll.apply(cell.rule, x, h, is_first, cell.recurrent.weight, *_second_layer(cell))


def fused_rollout(
    cell: UpdateCell, head: nn.Module, z: Tensor, h: Tensor, a: Tensor, feed: Feed | None
) -> tuple[list[Tensor], Tensor]:
    """H steps on the head's predictions alone, without gradients: H predictions (B, Z), the states (H, B, D).

    Equal to `LatentPredictor.open_loop`, whose arguments it takes. Each step writes into the buffers of the one before:
    short operations on warm memory.
    """
    scale, shift, output, bias = _second_layer(cell)
    from_z, from_a = cell.input.weight.split([z.shape[-1], a.shape[-1]], dim=-1)
    from_z, from_a, from_h = from_z.mT, from_a.mT, cell.recurrent.weight.mT
    inner = z.new_empty(*z.shape[:-1], cell.input.weight.shape[-2])
    proposals = inner if output is None else z.new_empty(*z.shape[:-1], output.shape[-2])
    step, preds = FUSED[cell.rule].forward(proposals.unsqueeze(0)), []
    states, start = h.new_empty(a.shape[-2], *h.shape), over_lanes(cell.input.bias)
    for a_t, state in zip(a.unbind(dim=-2), states.unbind(), strict=True):
        _addmm(start, a_t, from_a, inner)
        _addmm(inner, z, from_z, inner)
        _addmm(inner, h, from_h, inner)
        if output is not None:
            _propose(inner, scale, shift, output.mT, bias, proposals)
        step(0, h, state)
        h, pred = state, head(state)
        z = pred if feed is None else feed(pred, a_t)
        preds.append(pred)
    return preds, states


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
    steps, width = _by_step(*proposals.chunk(2, dim=-1)), [proposals.shape[-1] // 2]
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
    keep, by_candidate = 1 - alpha, alpha
    if norm:
        # the clamps cut nothing that is not zero up to rounding: LayerNorm's Jacobian vanishes at the bound, and is
        # below 1e-13 beyond 1e15
        clamped, width = value.clamp(-HUGEST, HUGEST), [value.shape[-1]]
        value, _, rstd = torch.native_layer_norm(clamped, width, None, None, EPSILON)
        by_candidate = alpha * rstd
    by_gate = (value - before).mul_(alpha).mul_(keep)
    steps = _by_step(by_gate, keep, by_candidate, value, *grads.chunk(2, dim=-1))

    def pull(t: int, grad: Tensor) -> Tensor:
        by_gate, keep, by_candidate, value, grad_gate, grad_candidate = steps[t]
        torch.mul(grad, by_gate, out=grad_gate)
        if norm:
            _through_norm(grad * by_candidate, value, grad_candidate)
        else:
            torch.mul(grad, by_candidate, out=grad_candidate)
        return grad * keep

    return pull


def _unit_norm(proposals: Tensor) -> Step:
    steps = proposals.unbind()
    return lambda t, h, out: out.copy_(rules.unit_norm(h, steps[t]))


def _unit_norm_backward(before: Tensor, proposals: Tensor, after: Tensor, grads: Tensor) -> Pull:
    length = (before + proposals).norm(dim=-1, keepdim=True)
    floor = 1e-12  # of F.normalize; below it the length is a constant
    steps = _by_step(after.masked_fill(length < floor, 0.0), length.clamp(min=floor).reciprocal(), grads)

    def pull(t: int, grad: Tensor) -> Tensor:
        radial, shrink, out = steps[t]
        along = (grad * radial).sum(dim=-1, keepdim=True)
        return torch.mul(torch.addcmul(grad, radial, along, value=-1), shrink, out=out)

    return pull


FUSED: dict[rules.Rule, Passes] = {
    rules.residual: Passes(_residual, _residual_backward),
    rules.gated: Passes(_gated, _gated_backward),
    rules.gated_norm: Passes(partial(_gated, norm=True), partial(_gated_backward, norm=True), centres=True),
    rules.direct: Passes(_direct, _direct_backward),
    rules.unit_norm: Passes(_unit_norm, _unit_norm_backward),
}


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: rules.Rule, x: Tensor, h: Tensor, is_first: Tensor, recurrent: Tensor, *second: Tensor | None
    ) -> Tensor:
        scale, shift, output, bias = second
        first, width = h, recurrent.shape[-1]
        states = _like(x, width)
        proposals = torch.empty_like(x) if output is None else _like(x, output.shape[-2])
        inner = proposals if output is None else torch.empty_like(x)
        step = FUSED[rule].forward(proposals)
        from_h, from_inner = recurrent.mT, None if output is None else output.mT
        ctx.rule, ctx.resets = rule, _resets(is_first)
        rows = zip(x.unbind(), ctx.resets, inner.unbind(), proposals.unbind(), states.unbind(), strict=True)
        for t, (x_t, reset, inner_t, proposals_t, state) in enumerate(rows):
            if reset is not None:
                h = h.masked_fill(reset, 0.0)
            _addmm(x_t, h, from_h, inner_t)
            if from_inner is not None:
                _propose(inner_t, scale, shift, from_inner, bias, proposals_t)
            step(t, h, state)
            h = state
        ctx.save_for_backward(first, is_first, recurrent, *second, states, proposals, None if output is None else inner)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph; once_differentiable lets it pass where `gradients` are constants
            raise RuntimeError(
                "the fused unroll is differentiable once: take the states from LatentPredictor.states(by_step=True)"
            )
        first, is_first, recurrent, scale, shift, output, bias, states, proposals, inner = ctx.saved_tensors
        before = torch.cat([first.unsqueeze(0), states[:-1]]).masked_fill(is_first.unsqueeze(-1), 0.0)
        passes, width = FUSED[ctx.rule], first.shape[-1]
        grad_h, grads = torch.zeros_like(first), torch.empty_like(proposals)
        pull = passes.backward(before, proposals, states, grads)
        candidate = slice(proposals.shape[-1] - width, None)
        last = recurrent if output is None else output
        if passes.centres:
            last = torch.cat([last[..., : candidate.start, :], _centred(last[..., candidate, :], -2)], dim=-2)
        through = None if output is None else _SecondLayer(inner, scale, shift, last)
        into_h = last if through is None else _centred(recurrent, -2)
        rows = zip(gradients[0].unbind(), grads.unbind(), ctx.resets, strict=True)
        for t, (grad, grad_t, reset) in reversed(list(enumerate(rows))):
            direct = pull(t, grad_h + grad)
            if through is not None:
                grad_t = through(t, grad_t)
            grad_h = grad_t @ into_h if direct is None else _addmm(direct, grad_t, into_h)
            if reset is not None:
                grad_h.masked_fill_(reset, 0.0)
        if passes.centres:
            grads[..., candidate] = _centred(grads[..., candidate], -1)
        grad_x = grads if through is None else _centred(through.grad_inner, -1)
        grad_recurrent = _rows(grad_x).mT @ _rows(before)
        second = (None,) * 4 if through is None else through.gradients(grads)
        return None, grad_x, grad_h, None, grad_recurrent, *second


class _SecondLayer:
    """Backward through W_o silu(LayerNorm(inner)) + b_o; `grad_inner` keeps a mean, as in `_through_norm`."""

    def __init__(self, inner: Tensor, scale: Tensor, shift: Tensor, output: Tensor) -> None:
        self.output, width = output, inner.shape[-1]
        self.normed, _, rstd = torch.native_layer_norm(inner, [width], None, None, EPSILON)
        scale, shift = over_lanes(scale), over_lanes(shift)
        self.scaled = torch.addcmul(shift, self.normed, scale)
        sigmoid = torch.sigmoid(self.scaled)
        self.slope = sigmoid * (1 + self.scaled * (1 - sigmoid))  # of silu
        self.grad_active, self.grad_inner = torch.empty_like(inner), torch.empty_like(inner)
        self.steps = _by_step(self.grad_active, self.slope * scale * rstd, self.normed, self.grad_inner)

    def __call__(self, t: int, grad: Tensor) -> Tensor:
        grad_active, by_normed, normed, grad_inner = self.steps[t]
        _through_norm(torch.matmul(grad, self.output, out=grad_active) * by_normed, normed, grad_inner)
        return grad_inner

    def gradients(self, grads: Tensor) -> tuple[Tensor, ...]:
        """Of the norm's weight and bias, and of the output's."""
        grad_scaled = self.grad_active * self.slope
        grad_output, rows = _rows(grads).mT @ _rows(F.silu(self.scaled)), (0, -2)  # of all steps and lanes
        return (grad_scaled * self.normed).sum(rows), grad_scaled.sum(rows), grad_output, grads.sum(rows)


def _second_layer(cell: UpdateCell) -> tuple[Tensor | None, ...]:
    """Its norm's scale and shift, its matrix and bias; None each in a cell of one layer."""
    norm, output = cell.norm, cell.output
    return (None,) * 4 if norm is None or output is None else (norm.weight, norm.bias, output.weight, output.bias)


def _propose(inner: Tensor, scale: Any, shift: Any, from_inner: Tensor, bias: Any, out: Tensor) -> None:
    """Write the second layer's proposals (B, P) to `out`, from the first layer's sums (B, D)."""
    if scale.ndim == 1:
        normed = F.layer_norm(inner, inner.shape[-1:], scale, shift, EPSILON)
    else:
        normed = (
            F.layer_norm(inner, inner.shape[-1:], None, None, EPSILON).mul_(over_lanes(scale)).add_(over_lanes(shift))
        )
    _addmm(over_lanes(bias), F.silu(normed, inplace=True), from_inner, out)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """bias + x weight, of each member where there are several."""
    return (torch.addmm if weight.ndim == 2 else torch.baddbmm)(bias, x, weight, out=out)


def _like(x: Tensor, width: int) -> Tensor:
    """An empty tensor of another width, in which all steps and lanes of a member lie together."""
    if x.ndim == 3:
        return x.new_empty(*x.shape[:-1], width)
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2], width).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """(T, B, X) -> (T B, X); (T, K, B, X) -> (K, T B, X)."""
    return x.flatten(0, 1) if x.ndim == 3 else x.transpose(0, 1).flatten(1, 2)


def _through_norm(grad: Tensor, normed: Tensor, out: Tensor) -> None:
    """Write dL/dx (B, D) of n = (x - mean) / std to `out`, with its mean: grad - n mean(grad n), grad = dL/dn / std."""
    torch.addcmul(grad, normed, (grad * normed).sum(dim=-1, keepdim=True), value=-1 / grad.shape[-1], out=out)


def _centred(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim=dim, keepdim=True)


def _by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The steps of tensors (T, ...), side by side."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """The mask (B, 1) of each step; None where no lane is reset, as far as that is known without a device sync."""
    masks = is_first.unsqueeze(-1).unbind()
    if is_first.device.type != "cpu":
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, is_first.flatten(1).any(dim=1).tolist(), strict=True)]
