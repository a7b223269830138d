"""The cell around an update rule."""

from inspect import signature

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.proposals import proposals

RESIDUAL_START = 0.01  # times the usual first weights


class UpdateCell(nn.Module):
    """A rule with its gate and candidate from one matmul.

    One layer: proposals = W_x [z, a] + W_h h + b.
    Two layers: proposals = W_o silu(LayerNorm(W_x [z, a] + W_h h + b)) + b_o.
    The gate's bias starts at `gate_bias`; with -1 a new cell keeps 73% of its state at each step. `residual` has no
    gate, and what it adds starts near zero (as in Zhang et al. 2019, Fixup): a new cell whose state is carried
    through a long episode would start from a state that drowns its inputs, or overflows, and never learn.
    """

    def __init__(self, input_dim: int, hidden_dim: int, rule: str, layers: int, gate_bias: float) -> None:
        super().__init__()
        self.rule = rules.RULES[rule]
        self.state_dim = self.read_dim = hidden_dim
        names = list(signature(self.rule).parameters)[1:]
        self.num_proposals = len(names)
        self.gated = names[0] == "gate"
        wide = self.num_proposals * hidden_dim
        self.input = nn.Linear(input_dim, wide if layers == 1 else hidden_dim)
        self.recurrent = nn.Linear(hidden_dim, self.input.out_features, bias=False)
        self.norm = nn.LayerNorm(hidden_dim) if layers == 2 else None
        self.output = nn.Linear(hidden_dim, wide) if layers == 2 else None
        bias = self.input.bias if self.output is None else self.output.bias
        if self.gated:
            nn.init.constant_(bias[:hidden_dim], gate_bias)
        if self.rule is rules.residual:
            with torch.no_grad():
                (self.input if self.output is None else self.output).weight.mul_(RESIDUAL_START)
                bias.mul_(RESIDUAL_START)
                if self.output is None:
                    self.recurrent.weight.zero_()

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return self.input(torch.cat([z, a], dim=-1))

    def propose(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        made = proposals(x, h, self.recurrent, self.norm, self.output)
        return made.to(h.dtype).chunk(self.num_proposals, dim=-1)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rule(h, *self.propose(x, h))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return torch.sigmoid(self.propose(x, h)[0]) if self.gated else None

    def read(self, h: Tensor) -> Tensor:
        return h
