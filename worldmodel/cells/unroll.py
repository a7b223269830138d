"""The loops of an `UpdateCell` by hand: a segment with its backward pass written out, a rollout without one.

autograd runs a matmul for the weights' gradient at each of T steps, and some ten nodes beside it. Here the loops hold
what must wait for the step before, and no more: all that does not depend on the incoming gradient is made for the whole
segment at once, and the weights' gradient is one matmul over all steps. Equal to `recurrence.stepped`, which is the
reference, and which all other cells take; so do mixed precision, compilation and torch.func.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.by_hand import BY_HAND, EPSILON, by_step, through_norm
from worldmodel.cells.update import UpdateCell


def has_backward(cell: nn.Module) -> TypeGuard[UpdateCell]:
    """Whether `unrolled` takes it."""
    return isinstance(cell, UpdateCell) and cell.rule in BY_HAND


def unrolled(cell: UpdateCell, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
    """The states of a segment, (T, B, D): x (T, B, X) from `project`, h (B, D), a reset before each is_first (T, B).

    Differentiable once, in x, h and the cell's weights.
    """
    return _Unroll.apply(cell.rule, x, h, is_first, cell.recurrent.weight, *_second_layer(cell))


def rolled(cell: UpdateCell, head: nn.Module, z: Tensor, h: Tensor, a: Tensor) -> tuple[list[Tensor], Tensor]:
    """H steps on predictions alone, without gradients: H predictions (B, Z), the states (H, B, D).

    The arguments are those of `LatentPredictor.open_loop`, which this is equal to. A step writes into the buffers of
    the one before: short operations on warm memory.
    """
    scale, shift, output, bias = _second_layer(cell)
    from_z, from_a = cell.input.weight.split([z.shape[-1], a.shape[-1]], dim=1)
    from_z, from_a, from_h = from_z.T, from_a.T, cell.recurrent.weight.T
    sums = z.new_empty(len(z), len(cell.input.weight))
    made = sums if output is None else z.new_empty(len(z), len(output))
    step, preds = BY_HAND[cell.rule].forward(made.unsqueeze(0)), []
    states = h.new_empty(a.shape[1], *h.shape)
    for a_t, state in zip(a.unbind(dim=1), states.unbind(), strict=True):
        torch.addmm(cell.input.bias, a_t, from_a, out=sums).addmm_(z, from_z).addmm_(h, from_h)
        if output is not None:
            _propose(sums, scale, shift, output.T, bias, made)
        step(0, h, state)
        h, z = state, head(state)
        preds.append(z)
    return preds, states


def _second_layer(cell: UpdateCell) -> tuple[Tensor | None, ...]:
    """Its norm's scale and shift, its matrix and bias, where there is one."""
    norm, output = cell.norm, cell.output
    return (None,) * 4 if norm is None or output is None else (norm.weight, norm.bias, output.weight, output.bias)


def _propose(sums: Tensor, scale: Any, shift: Any, to_made: Tensor, bias: Any, made: Tensor) -> None:
    """Writes what the second layer makes of the first one's sums (B, D) to `made` (B, P)."""
    seen = F.silu(F.layer_norm(sums, sums.shape[-1:], scale, shift, EPSILON), inplace=True)
    torch.addmm(bias, seen, to_made, out=made)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: rules.Rule, x: Tensor, h: Tensor, is_first: Tensor, recurrent: Tensor, *second: Tensor | None
    ) -> Tensor:
        scale, shift, output, bias = second
        first, width = h, recurrent.shape[1]
        states = x.new_empty(*x.shape[:2], width)
        made = torch.empty_like(x) if output is None else x.new_empty(*x.shape[:2], len(output))
        inner = None if output is None else torch.empty_like(x)
        sums, proposals = (made if inner is None else inner).unbind(), made.unbind()
        step = BY_HAND[rule].forward(made)
        from_h, to_made = recurrent.T, None if output is None else output.T
        ctx.rule, ctx.resets = rule, _resets(is_first)
        rows = zip(x.unbind(), ctx.resets, sums, proposals, states.unbind(), strict=True)
        for t, (x_t, reset, sum_t, made_t, state) in enumerate(rows):
            if reset is not None:
                h = h.masked_fill(reset, 0.0)
            torch.addmm(x_t, h, from_h, out=sum_t)
            if to_made is not None:
                _propose(sum_t, scale, shift, to_made, bias, made_t)
            step(t, h, state)
            h = state
        ctx.save_for_backward(first, is_first, recurrent, *second, states, made, inner)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph; once_differentiable lets it pass where `gradients` are constants
            raise RuntimeError(
                "the unroll is differentiable once: take the states from LatentPredictor.states(by_step=True)"
            )
        first, is_first, recurrent, scale, shift, output, bias, states, made, inner = ctx.saved_tensors
        before = torch.cat([first.unsqueeze(0), states[:-1]]).masked_fill(is_first.unsqueeze(-1), 0.0)
        rule, width = BY_HAND[ctx.rule], first.shape[-1]
        of_h, of_made = torch.zeros_like(first), torch.empty_like(made)
        pull = rule.backward(before, made, states, of_made)
        candidate = slice(made.shape[-1] - width, None)
        maker = recurrent if output is None else output
        if rule.centres:
            maker = torch.cat([maker[: candidate.start], centred(maker[candidate], 0)])
        through = None if output is None else _SecondLayer(inner, scale, shift, maker)
        into_h = maker if through is None else centred(recurrent, 0)
        rows = zip(gradients[0].unbind(), of_made.unbind(), ctx.resets, strict=True)
        for t, (grad, of_proposals, reset) in reversed(list(enumerate(rows))):
            direct = pull(t, of_h + grad)
            if through is not None:
                of_proposals = through(t, of_proposals)
            of_h = of_proposals @ into_h if direct is None else torch.addmm(direct, of_proposals, into_h)
            if reset is not None:
                of_h.masked_fill_(reset, 0.0)
        if rule.centres:
            of_made[..., candidate] = centred(of_made[..., candidate], -1)
        of_x = of_made if through is None else centred(through.of_inner, -1)
        of_recurrent = of_x.flatten(0, 1).T @ before.flatten(0, 1)
        second = (None,) * 4 if through is None else through.gradients(of_made)
        return None, of_x, of_h, None, of_recurrent, *second


class _SecondLayer:
    """Backward through W_o silu(LayerNorm(inner)) + b_o; `of_inner` is left with a mean, as in `through_norm`."""

    def __init__(self, inner: Tensor, scale: Tensor, shift: Tensor, output: Tensor) -> None:
        self.output, width = output, inner.shape[-1]
        self.normed, _, rstd = torch.native_layer_norm(inner, [width], None, None, EPSILON)
        self.scaled = torch.addcmul(shift, self.normed, scale)
        share = torch.sigmoid(self.scaled)
        self.slope = share * (1 + self.scaled * (1 - share))  # of silu
        self.of_seen, self.of_inner = torch.empty_like(inner), torch.empty_like(inner)
        self.steps = by_step(self.of_seen, self.slope * scale * rstd, self.normed, self.of_inner)

    def __call__(self, t: int, of_proposals: Tensor) -> Tensor:
        of_seen, scaled, normed, of_inner = self.steps[t]
        through_norm(torch.mm(of_proposals, self.output, out=of_seen) * scaled, normed, of_inner)
        return of_inner

    def gradients(self, of_made: Tensor) -> tuple[Tensor, ...]:
        """Of the norm's weight and bias, and of the output's."""
        of_scaled = self.of_seen * self.slope
        of_output = of_made.flatten(0, 1).T @ F.silu(self.scaled).flatten(0, 1)
        return (of_scaled * self.normed).sum((0, 1)), of_scaled.sum((0, 1)), of_output, of_made.sum((0, 1))


def centred(x: Tensor, dim: int) -> Tensor:
    """Without its mean along an axis."""
    return x - x.mean(dim=dim, keepdim=True)


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """The mask (B, 1) of each step; None where no lane starts anew, as far as that is known without waiting."""
    masks = is_first.unsqueeze(-1).unbind()
    if is_first.device.type != "cpu":
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, is_first.any(dim=1).tolist(), strict=True)]
