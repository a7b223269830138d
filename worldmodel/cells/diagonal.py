"""A gated linear cell whose state Jacobian is diagonal in complex numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.cells.update import Cell
from worldmodel.nets import layer_norm, linear
from worldmodel.rules import diagonal, overwritten, twice


class Diagonal(Cell):
    """A linear recurrence with complex eigenvalues that the input chooses: it can rotate and forget.

    keep, angle and candidate depend on the input only, so the state Jacobian is lambda: a 2x2 block for each complex
    number, known before the state is. Exact gradients through any number of steps therefore cost as much as the
    parameters (rtrl.Eligibility). Related: LRU (Orvieto et al. 2023, arXiv 2303.06349), Mamba's input-dependent decay
    (Gu & Dao 2023, arXiv 2312.00752).

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
        return (
            inputs
            if self.input is None or self.norm is None
            else F.silu(layer_norm(linear(inputs, self.input), self.norm))
        )

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return linear(self.features(z, a), self.output)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return diagonal(h, *x.to(h.dtype).split([self.units, self.units, 2 * self.units], dim=-1))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return twice(overwritten(x[..., : self.units]))
