"""The states of a segment, with the backward pass through it written out."""

from typing import Any

import torch
from torch import Tensor

from worldmodel import rules
from worldmodel.cells.fused.layers import buffer
from worldmodel.cells.fused.recurrent import Backward, Forward, Layer, layers_of
from worldmodel.cells.standard import GRU
from worldmodel.cells.update import UpdateCell
from worldmodel.nets import affine


def fused_states(cell: UpdateCell | GRU, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
    """The states of a segment, (T, B, D): x (T, B, X) from `project`, h (B, D), a reset before each is_first (T, B).

    Differentiable once, in x, h and the cell's weights.
    """
    layers, found = layers_of(cell), list[Tensor]()
    for layer, start in zip(layers, h.chunk(len(layers), dim=-1), strict=True):
        if found:  # of all steps at once: a layer waits for its own last state alone
            read = found[-1][..., : layer.width]
            x = affine(read.movedim(0, -3), layer.input, layer.bias).movedim(-3, 0)
        found.append(_Unroll.apply(is_first, x, start, *layer))
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, is_first: Tensor, x: Tensor, h: Tensor, rule: rules.Rule, *weights: Tensor) -> Tensor:
        layer, first = Layer(rule, *weights), h
        states = buffer(x, h.shape[-1])
        steps = Forward(layer, layer.fill(buffer(x, layer.sums), x), states)
        ctx.rule, ctx.resets = rule, _resets(is_first)
        for t, reset in enumerate(ctx.resets):
            h = steps(t, h if reset is None else h.masked_fill(reset, 0.0))
        ctx.save_for_backward(is_first, first, states, *steps.sums, *weights)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph; once_differentiable lets it pass where `gradients` are constants
            raise RuntimeError(
                "the fused unroll is differentiable once: take the states from LatentPredictor.states(by_step=True)"
            )
        count = len(Layer._fields) - 1
        is_first, first, states, *sums = ctx.saved_tensors[:-count]
        layer = Layer(ctx.rule, *ctx.saved_tensors[-count:])
        before = torch.cat([first.unsqueeze(0), states[:-1]]).masked_fill_(is_first.unsqueeze(-1), 0.0)
        pull, grad_h = Backward(layer, before, states, sums), torch.zeros_like(first)
        for t, (grad, reset) in reversed(list(enumerate(zip(gradients[0].unbind(), ctx.resets, strict=True)))):
            grad_h, _ = pull(t, grad_h + grad)
            if reset is not None:
                grad_h.masked_fill_(reset, 0.0)
        of_sums, of_weights = pull.gradients()
        return None, layer.of_input(of_sums), grad_h, None, *of_weights, None, None


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """The mask (B, 1) of each step; None where no lane is reset, as far as that is known without a device sync.

    An exported graph does not know it either.
    """
    masks = is_first.unsqueeze(-1).unbind()
    if is_first.device.type != "cpu" or torch.compiler.is_exporting():
        return list(masks)
    return [mask if some else None for mask, some in zip(masks, is_first.flatten(1).any(dim=1).tolist(), strict=True)]
