"""A gated linear cell whose state Jacobian is diagonal in complex numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.rules import diagonal, drive, multiplier, overwritten, rotate, twice


class Diagonal(nn.Module):
    """A linear recurrence with complex eigenvalues that the input chooses: it can rotate and forget.

    keep, angle and candidate depend on the input only, so the state Jacobian is lambda: a 2x2 block for each complex
    number, known before the state is. The states of a segment can therefore come from a parallel scan (`scan`), and
    exact gradients through any number of steps cost as much as the parameters (see eligibility.py). Related: LRU
    (Orvieto et al. 2023, arXiv 2303.06349), Mamba's input-dependent decay (Gu & Dao 2023, arXiv 2312.00752).

    One layer: proposals = W_o [z, a] + b_o. Two layers: proposals = W_o silu(LayerNorm(W_i [z, a] + b_i)) + b_o.
    Heads see the state as it is, which is bounded. An odd `hidden_dim` is rounded up: a complex number has two entries.

    A new cell turns at constant angles between 0 and pi, slow ones more often, and forgets at rates between
    sigmoid(gate_bias) and sigmoid(gate_bias - 4): with -1, within 4 to 150 steps.
    """

    def __init__(self, input_dim: int, hidden_dim: int, layers: int, gate_bias: float) -> None:
        super().__init__()
        self.units = -(-hidden_dim // 2)
        self.state_dim = self.read_dim = 2 * self.units
        self.input = nn.Linear(input_dim, hidden_dim) if layers == 2 else None
        self.norm = nn.LayerNorm(hidden_dim) if layers == 2 else None
        self.output = nn.Linear(hidden_dim if layers == 2 else input_dim, 4 * self.units)
        keep, angle = slice(0, self.units), slice(self.units, 2 * self.units)
        with torch.no_grad():
            self.output.bias[keep] = 4 * torch.rand(self.units) - gate_bias
            self.output.bias[angle] = math.pi * torch.rand(self.units).square()
            self.output.weight[angle] = 0.0

    def features(self, z: Tensor, a: Tensor) -> Tensor:
        """What the last layer sees, (..., F)."""
        inputs = torch.cat([z, a], dim=-1)
        if self.input is None or self.norm is None:
            return inputs
        return F.silu(self.norm(self.input(inputs)))

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return self.output(self.features(z, a))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return diagonal(h, *self._proposals(x.to(h.dtype)))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return twice(overwritten(self._proposals(x)[0]))

    def read(self, h: Tensor) -> Tensor:
        return h

    def scan(self, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        """The states of a whole segment at once; equal to stepping through it, with a reset before each `is_first`.

        Hillis & Steele (1986): after round k each entry is composed of the 2^k steps that end there, so T steps take
        log2(T) rounds. Steps compose as (l2, d2) o (l1, d1) = (l2 l1, l2 d1 + d2), and a step composed across a reset
        is the later one alone.

        Args:
            x: (T, B, X), from `project`.
            h: (B, D), the state before the first step.
            is_first: (T, B) bool.

        Returns:
            (T, B, D).
        """
        keep, angle, candidate = self._proposals(x.to(h.dtype))
        steps = torch.cat(multiplier(keep, angle), dim=-1)
        states, reset = drive(keep, candidate), is_first.unsqueeze(-1)
        first = rotate(h.masked_fill(reset[0], 0.0), *steps[0].chunk(2, dim=-1)) + states[0]
        states = torch.cat([first.unsqueeze(0), states[1:]])
        reach = 1
        while reach < len(x):
            later, cut = steps[reach:].chunk(2, dim=-1), reset[reach:]
            # masked before the product, as in the loop: NaN x 0 is NaN
            added = rotate(states[:-reach].masked_fill(cut, 0.0), *later) + states[reach:]
            turned = rotate(steps[:-reach].masked_fill(cut, 0.0), *later)
            states, steps = torch.cat([states[:reach], added]), torch.cat([steps[:reach], turned])
            reset = torch.cat([reset[:reach], cut | reset[:-reach]])
            reach *= 2
        return states

    def _proposals(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, angle, candidate = x.split([self.units, self.units, 2 * self.units], dim=-1)
        return keep, angle, candidate
