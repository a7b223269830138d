"""Two cells, the second on top of the first."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.cells.update import Cell
from worldmodel.nets import layer_norm, linear


class Stack(Cell):
    """A cell on what another reads, as blocks are stacked: their proposals see no state, so depth is in the cells.

        u = silu(LayerNorm(W r1 + b)),  r1 the lower cell's read after its step;  read = r1 + r2

    The upper cell sees u in the place of [z, a]. The state packs theirs side by side; the gate is the lower one's.
    """

    def __init__(self, lower: Cell, upper: Cell, hidden_dim: int) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper
        self.state_dim, self.read_dim = lower.state_dim + upper.state_dim, lower.read_dim
        self.between = nn.Linear(lower.read_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return self.lower.project(z, a)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        below, above = self.states(h)
        below = self.lower.step(x, below)
        u = F.silu(layer_norm(linear(self.lower.read(below), self.between), self.norm))
        return torch.cat([below, self.upper.step(self.upper.project(u, u[..., :0]), above)], dim=-1)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return self.lower.gate(x, self.states(h)[0])

    def read(self, h: Tensor) -> Tensor:
        below, above = self.states(h)
        return self.lower.read(below) + self.upper.read(above)

    def states(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lower and of the upper cell."""
        below, above = h.split([self.lower.state_dim, self.upper.state_dim], dim=-1)
        return below, above
