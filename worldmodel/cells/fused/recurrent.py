"""A recurrent layer inside a loop: its weights in one form for all cells that have passes, and a step either way."""

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.fused.layers import (
    ROWS,
    Block,
    BlockBackward,
    addmm,
    buffer,
    by_step,
    rows,
)
from worldmodel.cells.fused.passes import FUSED, Passes
from worldmodel.cells.standard import GRU
from worldmodel.cells.update import UpdateCell
from worldmodel.nets import over_lanes


class Layer(NamedTuple):
    """A layer's rule and weights. Its sums (..., S) are the recurrent matmul, in the first R, and the input's share.

    One layer of a cell: the sums are the rule's proposals. With a second one, LayerNorm, SiLU and a matrix follow.
    """

    rule: rules.Rule
    recurrent: Tensor  # (R, D)
    recurrent_bias: Tensor | None  # (R,)
    scale: Tensor | None
    shift: Tensor | None
    output: Tensor | None  # (P, S)
    output_bias: Tensor | None
    input: Tensor  # (X, I): the last X sums
    bias: Tensor  # (X,)

    @property
    def passes(self) -> Passes:
        return FUSED[self.rule]

    @property
    def second(self) -> list[Tensor]:
        """The weights of its second layer; none, where it has one."""
        return [tensor for tensor in (self.scale, self.shift, self.output, self.output_bias) if tensor is not None]

    @property
    def width(self) -> int:
        """D: what is read of the state."""
        return self.recurrent.shape[-1]

    @property
    def sums(self) -> int:
        """S."""
        return self.input.shape[-2] + (self.width if self.passes.apart else 0)

    def of_input(self, x: Tensor) -> Tensor:
        """The input's part of sums or of their gradients (..., S), (..., X)."""
        return x[..., x.shape[-1] - self.input.shape[-2] :]

    def recurring(self, x: Tensor) -> Tensor:
        """The recurrent part, (..., R)."""
        return x[..., : self.recurrent.shape[-2]]

    def fill(self, sums: Tensor, share: Tensor) -> Tensor:
        """Write the input's share (..., X) and the recurrent bias to `sums` (..., S)."""
        if self.recurrent_bias is None:
            return sums.copy_(share)
        self.recurring(sums).copy_(over_lanes(self.recurrent_bias))
        if not self.passes.apart:
            return sums.add_(share)
        sums[..., self.recurrent.shape[-2] :] = 0.0
        self.of_input(sums).add_(share)
        return sums

    def all_bias(self) -> Tensor:
        """What the sums begin with, (S,)."""
        if self.recurrent_bias is None:
            return self.bias
        if not self.passes.apart:
            return self.recurrent_bias + self.bias
        own = torch.zeros_like(self.bias[..., : self.width])
        return torch.cat([self.recurrent_bias, own], dim=-1) + torch.cat([own, self.bias], dim=-1)


def has_fused(cell: nn.Module) -> TypeGuard[UpdateCell | GRU]:
    """Whether the fused passes take this cell."""
    return isinstance(cell, GRU) or (isinstance(cell, UpdateCell) and cell.rule in FUSED)


def layers_of(cell: UpdateCell | GRU) -> list[Layer]:
    """Its layers, the lowest first."""
    if isinstance(cell, UpdateCell):
        norm, output = cell.norm, cell.output
        first = cell.input.weight, cell.input.bias
        if norm is None or output is None:
            return [Layer(cell.rule, cell.recurrent.weight, None, None, None, None, None, *first)]
        second = norm.weight, norm.bias, output.weight, output.bias
        return [Layer(cell.rule, cell.recurrent.weight, None, *second, *first)]
    found = []
    for layer in range(cell.layers):
        recurrent, bias, *first = (
            getattr(cell.rnn, f"{name}_l{layer}") for name in ("weight_hh", "bias_hh", "weight_ih", "bias_ih")
        )
        if FUSED[cell.rule].apart:  # the candidate's first, not last: its sum is kept apart from the input's
            recurrent, bias = recurrent.roll(cell.read_dim, -2), bias.roll(cell.read_dim, -1)
        found.append(Layer(cell.rule, recurrent, bias, None, None, None, None, *first))
    return found


class Forward:
    """A layer's steps.

    Args:
        layer: its weights.
        sums: a buffer (T, B, S), which `Layer.fill` has filled before each step.
        states: a buffer (T, B, D) for the states after the steps.
    """

    def __init__(self, layer: Layer, sums: Tensor, states: Tensor) -> None:
        self.sums = [sums]
        if layer.output is not None:
            self.sums.append(buffer(sums, layer.output.shape[-2]))
        self._second = Block(layer.second, *self.sums) if layer.second else None
        self._step = layer.passes.forward(self.sums[-1])
        self._steps, self._from_h = by_step(layer.recurring(sums), states), layer.recurrent.mT
        self._width = layer.width if layer.passes.states > 1 else None

    def __call__(self, t: int, h: Tensor) -> Tensor:
        """The state after step t (B, D), which it writes, from that before."""
        share, state = self._steps[t]
        addmm(share, h[..., : self._width], self._from_h, share)
        if self._second is not None:
            self._second(t)
        self._step(t, h, state)
        return state


class Backward:
    """The backward pass of `Forward`.

    Args:
        layer: its weights.
        before: the states before the steps (T, B, D).
        states: those after.
        sums: what the steps left in the buffers.
    """

    def __init__(self, layer: Layer, before: Tensor, states: Tensor, sums: list[Tensor]) -> None:
        self._layer, self._before = layer, before
        self.grads = torch.empty_like(sums[-1])  # of the proposals
        self._pull = layer.passes.backward(before, sums[-1], states, self.grads)
        self._second = BlockBackward(layer.second, sums[0]) if layer.second else None
        self._steps = self.grads.unbind()

    def __call__(self, t: int, grad: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dh before step t (B, D), from that after it; and of the step's sums (B, S)."""
        rest, grad_sums = self._pull(t, grad), self._steps[t]
        if self._second is not None:
            grad_sums = self._second(t, grad_sums)
        layer, width = self._layer, self._layer.width
        share = layer.recurring(grad_sums)
        if rest is None:
            return share @ layer.recurrent, grad_sums
        if rest.shape[-1] == width:
            return addmm(rest, share, layer.recurrent), grad_sums
        torch.matmul(share, layer.recurrent, out=rest[..., :width])
        return rest, grad_sums

    def gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """Of all sums (T, B, S), and of the layer's weights from `recurrent` to `output_bias`."""
        layer, grads = self._layer, self.grads
        second: list[Tensor | None] = [None] * 4
        if self._second is not None:
            grads, second[:] = self._second.gradients(grads)
        share = layer.recurring(grads)
        of_recurrent = rows(share).mT @ rows(self._before[..., : layer.width])
        return grads, [of_recurrent, None if layer.recurrent_bias is None else share.sum(ROWS), *second]
