"""Slot memory: sparse writes by a learned router, reads by attention."""

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.proposals import proposals

SLOTS = 8


class Slots(nn.Module):
    """Eight slots, each as wide as `hidden_dim`, of which a step writes one; see `rules.slots` for the equations.

    A router looks at the input and at what was read last, and picks the slot; the others keep their value exactly,
    for however long they are not picked. So memory does not wear out, and holds eight times what one state vector
    does. What is read depends on the input, and read(h) is given h alone: therefore the last read is a part of the
    state, [slots, read], nine times `hidden_dim` wide. Heads see the read, D wide, as do the next step's proposals.
    A slot is found by its content (`query`, as in attention) and by its number (`address`), both as in the neural
    Turing machine (Graves et al. 2014, arXiv 1410.5401).

    One layer: proposals = W_x [z, a] + W_r r + b.
    Two layers: proposals = W_o silu(LayerNorm(W_x [z, a] + W_r r + b)) + b_o.
    The write gate's bias starts at `gate_bias`. |h_i| <= sqrt(D - 1), D = `hidden_dim`, for any finite input.
    """

    def __init__(self, input_dim: int, hidden_dim: int, layers: int, gate_bias: float) -> None:
        super().__init__()
        self.state_dim = (SLOTS + 1) * hidden_dim
        self.read_dim = hidden_dim
        self.widths = [hidden_dim, hidden_dim, SLOTS, hidden_dim, SLOTS]  # gate, candidate, route, query, address
        self.input = nn.Linear(input_dim, sum(self.widths) if layers == 1 else hidden_dim)
        self.recurrent = nn.Linear(hidden_dim, self.input.out_features, bias=False)
        self.norm = nn.LayerNorm(hidden_dim) if layers == 2 else None
        self.output = nn.Linear(hidden_dim, sum(self.widths)) if layers == 2 else None
        bias = self.input.bias if self.output is None else self.output.bias
        nn.init.constant_(bias[:hidden_dim], gate_bias)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return self.input(torch.cat([z, a], dim=-1))

    def propose(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The arguments of `rules.slots` after h."""
        made = proposals(x, self.read(h), self.recurrent, self.norm, self.output)
        return made.to(h.dtype).split(self.widths, dim=-1)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return rules.slots(h, *self.propose(x, h))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the slot that is written, (..., D): the others are not touched."""
        gate, _, route, _, _ = self.propose(x, h)
        return torch.sigmoid(rules.write_gate(gate, route))

    def read(self, h: Tensor) -> Tensor:
        """What the last step's query found."""
        return h[..., -self.read_dim :]
