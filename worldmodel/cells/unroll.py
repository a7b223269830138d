"""The unroll of an `UpdateCell` over a segment with its backward pass written out.

autograd runs a matmul for the weights' gradient at each of T steps, and some ten nodes beside it. Here the loops hold
what must wait for the step before, and no more: all that does not depend on the incoming gradient is made for the whole
segment at once, and the weights' gradient is one matmul over all steps. Equal to `recurrence.stepped`, which
is the reference, and which all other cells take; so do mixed precision, compilation and torch.func.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import UpdateCell

NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default

# (t, dL/dh_t, out): writes dL/dproposals_t to `out` (B, P); returns the part of dL/dh_(t-1) that does not pass through
# the proposals. None: 0.
Pull = Callable[[int, Tensor, Tensor], Tensor | None]


def has_backward(cell: nn.Module) -> TypeGuard[UpdateCell]:
    """Whether `unrolled` takes it."""
    return isinstance(cell, UpdateCell) and cell.rule in PULLBACKS


def unrolled(cell: UpdateCell, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
    """The states of a segment, (T, B, D): x (T, B, X) from `project`, h (B, D), a reset before each is_first (T, B).

    Differentiable once, in x, h and the cell's weights.
    """
    norm, output = cell.norm, cell.output
    second = (None,) * 4 if norm is None or output is None else (norm.weight, norm.bias, output.weight, output.bias)
    return _Unroll.apply(cell.rule, x, h, is_first, cell.recurrent.weight, *second)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: rules.Rule, x: Tensor, h: Tensor, is_first: Tensor, recurrent: Tensor, *second: Tensor | None
    ) -> Tensor:
        scale, shift, output, bias = second
        first, states, width = h, [], (recurrent.shape[1],)
        made = torch.empty_like(x) if output is None else x.new_empty(*x.shape[:2], len(output))
        inner = None if output is None else torch.empty_like(x)
        sums, proposals = (made if inner is None else inner).unbind(), made.unbind()
        count, from_h = made.shape[-1] // width[0], recurrent.T
        ctx.rule, ctx.resets = rule, _resets(is_first)
        for x_t, reset, sum_t, made_t in zip(x.unbind(), ctx.resets, sums, proposals, strict=True):
            if reset is not None:
                h = h.masked_fill(reset, 0.0)
            torch.addmm(x_t, h, from_h, out=sum_t)
            if output is not None:
                seen = F.silu(F.layer_norm(sum_t, width, scale, shift), inplace=True)
                torch.addmm(bias, seen, output.T, out=made_t)  # type: ignore[arg-type]
            h = rule(h, *made_t.chunk(count, dim=-1))
            states.append(h)
        kept = torch.stack(states)
        ctx.save_for_backward(first, is_first, recurrent, *second, kept, made, inner)
        return kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph; once_differentiable lets it pass where `gradients` are constants
            raise RuntimeError(
                "the unroll is differentiable once: take the states from LatentPredictor.states(by_step=True)"
            )
        (grad,) = gradients
        first, is_first, recurrent, scale, shift, output, bias, states, made, inner = ctx.saved_tensors
        before = torch.cat([first.unsqueeze(0), states[:-1]]).masked_fill(is_first.unsqueeze(-1), 0.0)
        pull = PULLBACKS[ctx.rule](before, made, states)
        through = None if output is None else _SecondLayer(inner, scale, shift, output)
        of_h, of_made, of_x = torch.zeros_like(first), torch.empty_like(made), []
        for t, reset in reversed(list(enumerate(ctx.resets))):
            of_proposals = of_made[t]
            direct = pull(t, of_h + grad[t], of_proposals)
            if through is not None:
                of_proposals = through(t, of_proposals)
                of_x.append(of_proposals)
            of_h = of_proposals @ recurrent if direct is None else torch.addmm(direct, of_proposals, recurrent)
            if reset is not None:
                of_h.masked_fill_(reset, 0.0)
        of_x = of_made if through is None else torch.stack(of_x[::-1])
        of_recurrent = of_x.flatten(0, 1).T @ before.flatten(0, 1)
        second = (None,) * 4 if through is None else through.gradients(of_made)
        return None, of_x, of_h, None, of_recurrent, *second


class _SecondLayer:
    """Backward through W_o silu(LayerNorm(inner)) + b_o."""

    def __init__(self, inner: Tensor, scale: Tensor, shift: Tensor, output: Tensor) -> None:
        self.output, self.width = output, [inner.shape[-1]]
        self.normed, mean, rstd = torch.native_layer_norm(inner, self.width, None, None, 1e-5)
        self.scaled = torch.addcmul(shift, self.normed, scale)
        share = torch.sigmoid(self.scaled)
        self.slope = share * (1 + self.scaled * (1 - share))  # of silu
        self.of_seen = torch.empty_like(inner)
        self.steps = _by_step(self.slope * scale, inner, mean, rstd, self.of_seen)

    def __call__(self, t: int, of_proposals: Tensor) -> Tensor:
        slope, inner, mean, rstd, of_seen = self.steps[t]
        return _norm_backward(torch.mm(of_proposals, self.output, out=of_seen) * slope, inner, mean, rstd)

    def gradients(self, of_made: Tensor) -> tuple[Tensor, ...]:
        """Of the norm's weight and bias, and of the output's."""
        of_scaled = self.of_seen * self.slope
        of_output = of_made.flatten(0, 1).T @ F.silu(self.scaled).flatten(0, 1)
        return (of_scaled * self.normed).sum((0, 1)), of_scaled.sum((0, 1)), of_output, of_made.sum((0, 1))


def _residual(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    return lambda t, g, out: out.copy_(g)


def _direct(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    def pull(t: int, g: Tensor, out: Tensor) -> None:
        out.copy_(g)

    return pull


def _gated(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    gate, candidate = made.chunk(2, dim=-1)
    alpha = torch.sigmoid(gate)
    keep = 1 - alpha
    steps = _by_step((candidate - before).mul_(alpha).mul_(keep), alpha, keep)

    def pull(t: int, g: Tensor, out: Tensor) -> Tensor:
        by_gate, by_candidate, keep = steps[t]
        torch.cat([g * by_gate, g * by_candidate], dim=-1, out=out)
        return g * keep

    return pull


def _gated_norm(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    gate, candidate = made.chunk(2, dim=-1)
    width = candidate.shape[-1]
    alpha, bound = torch.sigmoid(gate), (width - 1) ** 0.5
    keep, clamped = 1 - alpha, candidate.clamp(-1e15, 1e15)
    normed, mean, rstd = torch.native_layer_norm(clamped, [width], None, None, 1e-5)
    by_gate = normed.clamp_(-bound, bound).sub_(before).mul_(alpha).mul_(keep)
    steps = _by_step(by_gate, alpha, keep, clamped, mean, rstd)

    def pull(t: int, g: Tensor, out: Tensor) -> Tensor:
        by_gate, by_normed, keep, clamped, mean, rstd = steps[t]
        # the clamps cut nothing that is not zero up to rounding: LayerNorm's Jacobian vanishes at the bound, and is
        # below 1e-13 beyond 1e15
        of_candidate = _norm_backward(g * by_normed, clamped, mean, rstd)
        torch.cat([g * by_gate, of_candidate], dim=-1, out=out)
        return g * keep

    return pull


def _unit_norm(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    length = (before + made).norm(dim=-1, keepdim=True)
    floor = 1e-12  # of F.normalize; below it the length is a constant
    steps = _by_step(after.masked_fill(length < floor, 0.0), length.clamp(min=floor).reciprocal())

    def pull(t: int, g: Tensor, out: Tensor) -> Tensor:
        radial, shrink = steps[t]
        along = (g * radial).sum(dim=-1, keepdim=True)
        return torch.mul(torch.addcmul(g, radial, along, value=-1), shrink, out=out)

    return pull


# From the states before the steps (T, B, D), the proposals (T, B, P) and the states after.
PULLBACKS: dict[rules.Rule, Callable[[Tensor, Tensor, Tensor], Pull]] = {
    rules.residual: _residual,
    rules.gated: _gated,
    rules.gated_norm: _gated_norm,
    rules.direct: _direct,
    rules.unit_norm: _unit_norm,
}


def _norm_backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Of LayerNorm without affine, at x."""
    of_x, _, _ = NORM_BACKWARD(g, x, x.shape[-1:], mean, rstd, None, None, [True, False, False])
    return of_x


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """The mask (B, 1) of each step; None where no lane starts anew, as far as that is known without waiting."""
    masks = is_first.unsqueeze(-1).unbind()
    if is_first.device.type != "cpu":
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, is_first.any(dim=1).tolist(), strict=True)]


def _by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))
