"""No memory: what a recurrent policy is held against."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Memoryless(nn.Module):
    """h_next = silu(W [z, a] + b), whatever h was: a layer as wide as a state, that nothing is carried through."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = self.read_dim = hidden_dim
        self.input = nn.Linear(input_dim, hidden_dim)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return F.silu(self.input(torch.cat([z, a], dim=-1)))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return x.to(h.dtype)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return None

    def read(self, h: Tensor) -> Tensor:
        return h
