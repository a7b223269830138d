"""Rollouts on a predictor's own predictions, without gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodel.cells.fused.layers import addmm, buffer
from worldmodel.cells.fused.recurrent import Forward, Layer, layers_of
from worldmodel.cells.standard import GRU
from worldmodel.cells.update import UpdateCell
from worldmodel.nets import over_lanes

Feed = Callable[[Tensor, Tensor], Tensor]  # what a rollout sees next, after a prediction (B, Z) and an action (B, A)


def fused_rollout(
    cell: UpdateCell | GRU, head: nn.Module, z: Tensor, h: Tensor, a: Tensor, feed: Feed | None
) -> tuple[Tensor, Tensor]:
    """H steps on the head's predictions alone, without gradients: predictions (B, H, Z), the states (B, H, D).

    Equal to `LatentPredictor.open_loop`, whose arguments it takes. Each step writes into the buffers of the one before:
    short operations on warm memory.
    """
    actions, preds = a.movedim(-2, 0), list[Tensor]()
    stack = _Stack(layers_of(cell), actions, h)
    for t, a_t in enumerate(actions.unbind()):
        preds.append(head(stack(t, z, a_t)))
        z = preds[-1] if feed is None else feed(preds[-1], a_t)
    return torch.stack(preds, dim=-2), stack.states.movedim(0, -2)


class _Stack:
    """The layers of a cell, one step of a rollout at a time.

    Args:
        layers: the lowest first.
        actions: (H, B, A).
        h: the state before (B, D).
    """

    def __init__(self, layers: list[Layer], actions: Tensor, h: Tensor) -> None:
        self.states, self._layers, self._h = buffer(actions, h.shape[-1]), layers, list(h.chunk(len(layers), dim=-1))
        sums = [buffer(actions[:1], layer.sums) for layer in layers]
        sums = [part.expand(len(actions), *part.shape[1:]) for part in sums]  # all steps share the memory of one
        states = self.states.chunk(len(layers), dim=-1)
        self.steps = [Forward(*parts) for parts in zip(layers, sums, states, strict=True)]
        self._sums, self._biases = [part.unbind() for part in sums], [over_lanes(layer.all_bias()) for layer in layers]
        lowest, width = layers[0].input, actions.shape[-1]
        self._from_z, self._from_a = lowest.mT.split([lowest.shape[-1] - width, width], dim=-2)

    def __call__(self, t: int, z: Tensor, action: Tensor) -> Tensor:
        """What is read of the state after step t (B, D), from the latent (B, Z) and the action (B, A) before it."""
        inputs, read = [(action, self._from_a), (z, self._from_z)], z
        for number, layer in enumerate(self._layers):
            sums, start = self._sums[number][t], self._biases[number]
            if layer.passes.apart:
                sums.copy_(start)
                sums = start = layer.of_input(sums)
            for x, weight in inputs:
                start = addmm(start, x, weight, sums)
            self._h[number] = state = self.steps[number](t, self._h[number])
            read = state if layer.passes.states == 1 else state[..., : layer.width]
            inputs = [] if number + 1 == len(self._layers) else [(read, self._layers[number + 1].input.mT)]
        return read
