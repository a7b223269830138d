"""Linear cells whose proposals come from the input alone."""

import math

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import Cell
from worldmodel.nets import linear, over_lanes

SLOWEST, FASTEST = 0.999, 0.5  # |lambda| of a new LRU: a memory of 1000 to 1.4 steps


class LRU(Cell):
    """The linear recurrent unit of Orvieto et al. 2023 (arXiv 2303.06349); see `rules.lru` for the equations.

    drive = B [z, a]. Heads see the complex state as [real, imaginary]: their first layer is the paper's C. A new cell's
    eigenvalues are uniform in the upper half of a ring, and scale starts at sqrt(1 - |lambda|^2), so that white inputs
    give every entry the same variance. An odd `hidden_dim` is rounded up: a complex number has two entries.

    S5 (Smith et al. 2022, arXiv 2208.04933) has the same recurrence with other parameters: eigenvalues
    exp(Lambda Delta) of a system in continuous time, which start at those of HiPPO-N with a learned step Delta for
    each, and (exp(Lambda Delta) - 1) / Lambda, from the discretisation, in the place of the scale.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        units = -(-hidden_dim // 2)
        self.state_dim = self.read_dim = 2 * units
        self.input = nn.Linear(input_dim, 2 * units, bias=False)
        modulus = (FASTEST**2 + torch.rand(units) * (SLOWEST**2 - FASTEST**2)).sqrt()
        self.decay = nn.Parameter(torch.log(-torch.log(modulus)))
        self.angle = nn.Parameter(torch.log(math.pi * (1 - torch.rand(units))))
        self.scale = nn.Parameter(0.5 * torch.log1p(-modulus.square()))

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return linear(torch.cat([z, a], dim=-1), self.input)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return rules.lru(h, over_lanes(self.decay), over_lanes(self.angle), over_lanes(self.scale), x.to(h.dtype))


class MinGRU(Cell):
    """minGRU (Feng et al. 2024, arXiv 2410.01201): gate and candidate are linear in [z, a]; see `rules.mingru`."""

    def __init__(self, input_dim: int, hidden_dim: int, gate_bias: float) -> None:
        super().__init__()
        self.state_dim = self.read_dim = hidden_dim
        self.input = nn.Linear(input_dim, 2 * hidden_dim)
        nn.init.constant_(self.input.bias[:hidden_dim], gate_bias)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return linear(torch.cat([z, a], dim=-1), self.input)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return rules.mingru(h, *x.to(h.dtype).chunk(2, dim=-1))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return torch.sigmoid(x.chunk(2, dim=-1)[0])
