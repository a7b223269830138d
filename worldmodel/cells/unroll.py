"""The unroll of an `UpdateCell` over a segment with its backward pass written out.

autograd runs a matmul for the weights' gradient at each of T steps, and some ten nodes beside it. Here the loops hold
what must wait for the step before, and no more: all that does not depend on the incoming gradient is made for the whole
segment at once, and the weights' gradient is one matmul over all steps. Equal to the loop in `LatentPredictor`, which
is the reference, and which all other cells take; so do mixed precision, compilation and torch.func.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import UpdateCell

# (t, dL/dh_t) -> dL/dproposals_t (B, P), and the part of dL/dh_(t-1) that does not pass through them; None: 0
Pull = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]


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
        states, made, inner = [], [], []
        first, width, from_h = h, (recurrent.shape[1],), recurrent.T
        count = (recurrent if output is None else output).shape[0] // width[0]
        for x_t, reset in zip(x.unbind(), _resets(is_first), strict=True):
            if reset is not None:
                h = h.masked_fill(reset, 0.0)
            proposals = torch.addmm(x_t, h, from_h)
            if output is not None:
                inner.append(proposals)
                seen = F.silu(F.layer_norm(proposals, width, scale, shift), inplace=True)
                proposals = torch.addmm(bias, seen, output.T)  # type: ignore[arg-type]
            h = rule(h, *proposals.chunk(count, dim=-1))
            made.append(proposals)
            states.append(h)
        kept = torch.stack(states), torch.stack(made), torch.stack(inner) if inner else None
        ctx.save_for_backward(first, is_first, recurrent, *second, *kept)
        ctx.rule = rule
        return kept[0]

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
        of_made, of_x, of_h = [], [], torch.zeros_like(first)
        for t, reset in reversed(list(enumerate(_resets(is_first)))):
            of_proposals, direct = pull(t, of_h + grad[t])
            of_made.append(of_proposals)
            if through is not None:
                of_proposals = through(t, of_proposals)
            of_x.append(of_proposals)
            of_h = of_proposals @ recurrent if direct is None else torch.addmm(direct, of_proposals, recurrent)
            if reset is not None:
                of_h.masked_fill_(reset, 0.0)
        of_made, of_x = _in_order(of_made), _in_order(of_x)
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
        self.steps = _by_step(self.slope * scale, inner, mean, rstd)
        self.seen: list[Tensor] = []

    def __call__(self, t: int, of_proposals: Tensor) -> Tensor:
        slope, inner, mean, rstd = self.steps[t]
        of_seen = of_proposals @ self.output
        self.seen.append(of_seen)
        return _norm_backward(of_seen * slope, inner, mean, rstd)

    def gradients(self, of_made: Tensor) -> tuple[Tensor, ...]:
        """Of the norm's weight and bias, and of the output's."""
        of_scaled = _in_order(self.seen) * self.slope
        of_output = of_made.flatten(0, 1).T @ F.silu(self.scaled).flatten(0, 1)
        return (of_scaled * self.normed).sum((0, 1)), of_scaled.sum((0, 1)), of_output, of_made.sum((0, 1))


def _residual(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    return lambda t, g: (g, g)


def _direct(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    return lambda t, g: (g, None)


def _gated(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    gate, candidate = made.chunk(2, dim=-1)
    alpha = torch.sigmoid(gate)
    keep = 1 - alpha
    steps = _by_step((candidate - before) * alpha * keep, alpha, keep)

    def pull(t: int, g: Tensor) -> tuple[Tensor, Tensor]:
        by_gate, by_candidate, keep = steps[t]
        return torch.cat([g * by_gate, g * by_candidate], dim=-1), g * keep

    return pull


def _gated_norm(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    gate, candidate = made.chunk(2, dim=-1)
    width = candidate.shape[-1]
    alpha, bound = torch.sigmoid(gate), (width - 1) ** 0.5
    keep, clamped = 1 - alpha, candidate.clamp(-1e15, 1e15)
    normed, mean, rstd = torch.native_layer_norm(clamped, [width], None, None, 1e-5)
    by_gate = (normed.clamp(-bound, bound) - before) * alpha * keep
    by_normed = alpha.masked_fill(normed.abs() > bound, 0.0)
    steps = _by_step(by_gate, by_normed, keep, clamped, mean, rstd)

    def pull(t: int, g: Tensor) -> tuple[Tensor, Tensor]:
        by_gate, by_normed, keep, clamped, mean, rstd = steps[t]
        of_candidate = _norm_backward(g * by_normed, clamped, mean, rstd)  # below 1e-13 g, where the clamp cuts it
        return torch.cat([g * by_gate, of_candidate], dim=-1), g * keep

    return pull


def _unit_norm(before: Tensor, made: Tensor, after: Tensor) -> Pull:
    length = (before + made).norm(dim=-1, keepdim=True)
    floor = 1e-12  # of F.normalize; below it the length is a constant
    steps = _by_step(after.masked_fill(length < floor, 0.0), length.clamp(min=floor).reciprocal())

    def pull(t: int, g: Tensor) -> tuple[Tensor, Tensor]:
        radial, shrink = steps[t]
        along = (g * radial).sum(dim=-1, keepdim=True)
        of_sum = torch.addcmul(g, radial, along, value=-1) * shrink
        return of_sum, of_sum

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
    return torch.ops.aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, None, None, [True, False, False])[
        0
    ]


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """The mask (B, 1) of each step; None where no lane starts anew, as far as that is known without waiting."""
    masks = is_first.unsqueeze(-1).unbind()
    if is_first.device.type != "cpu":
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, is_first.any(dim=1).tolist(), strict=True)]


def _by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _in_order(backwards: list[Tensor]) -> Tensor:
    return torch.stack(backwards[::-1])
