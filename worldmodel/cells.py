"""Recurrent cells: parameters around an update rule.

A cell has three parts, so that only what depends on h is inside the time loop:

    project(z, a) -> x      the inputs of a whole segment in one matmul, in any leading shape
    step(x_t, h) -> h_next  one step
    read(h)                 what the heads see of the state

and `gate(x, h)`, the share of each entry that a step overwrites (None for a rule without a gate). `state_dim` is the
width of h, `read_dim` that of read(h). The state at an episode's start is zeros.
"""

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.errors import UserError, choose

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
        proposals = list(signature(self.rule).parameters)[1:]
        self.num_proposals = len(proposals)
        self.gated = proposals[0] == "gate"
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
        proposals = x + self.recurrent(h)
        if self.norm is not None and self.output is not None:
            proposals = self.output(F.silu(self.norm(proposals)))
        return proposals.to(h.dtype).chunk(self.num_proposals, dim=-1)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rule(h, *self.propose(x, h))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return torch.sigmoid(self.propose(x, h)[0]) if self.gated else None

    def read(self, h: Tensor) -> Tensor:
        return h


class GRU(nn.Module):
    """torch.nn.GRU's parameters and arithmetic, one step at a time. Stacked layers pack their states side by side."""

    torch_cell: type[nn.GRU] | type[nn.LSTM] = nn.GRU
    states_per_layer = 1

    def __init__(self, input_dim: int, hidden_dim: int, layers: int) -> None:
        super().__init__()
        self.rnn = self.torch_cell(input_dim, hidden_dim, num_layers=layers)
        self.layers = layers
        self.state_dim = self.states_per_layer * layers * hidden_dim
        self.read_dim = hidden_dim

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return F.linear(torch.cat([z, a], dim=-1), self._weight("weight_ih", 0), self._weight("bias_ih", 0))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        states = []
        x = x.to(h.dtype)  # under autocast the matmuls are in half precision, the state is not
        for layer, state in enumerate(h.chunk(self.layers, dim=-1)):
            if layer:
                below = states[-1][..., : self.read_dim]
                x = F.linear(below, self._weight("weight_ih", layer), self._weight("bias_ih", layer)).to(h.dtype)
            states.append(self.update(x, state, layer))
        return torch.cat(states, dim=-1)

    def update(self, x: Tensor, state: Tensor, layer: int) -> Tensor:
        (r_x, k_x, n_x), (r_h, k_h, n_h) = x.chunk(3, dim=-1), self._recurrent(state, layer).chunk(3, dim=-1)
        return rules.gru(state, r_x + r_h, k_x + k_h, n_x, n_h)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the first layer: one minus the keep (update) gate."""
        keep = (x + self._recurrent(h.chunk(self.layers, dim=-1)[0], 0)).chunk(3, dim=-1)[1]
        return 1 - torch.sigmoid(keep)

    def read(self, h: Tensor) -> Tensor:
        """The last layer's hidden vector."""
        return h.chunk(self.layers, dim=-1)[-1][..., : self.read_dim]

    def _weight(self, name: str, layer: int) -> Tensor:
        return getattr(self.rnn, f"{name}_l{layer}")

    def _recurrent(self, state: Tensor, layer: int) -> Tensor:
        hidden = state[..., : self.read_dim]
        return F.linear(hidden, self._weight("weight_hh", layer), self._weight("bias_hh", layer)).to(state.dtype)


class LSTM(GRU):
    """torch.nn.LSTM's parameters and arithmetic. The state packs [hidden, cell] of each layer; heads see the hidden."""

    torch_cell = nn.LSTM
    states_per_layer = 2

    def update(self, x: Tensor, state: Tensor, layer: int) -> Tensor:
        return rules.lstm(state, *(x + self._recurrent(state, layer)).chunk(4, dim=-1))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the first layer: one minus the keep (forget) gate."""
        keep = (x + self._recurrent(h.chunk(self.layers, dim=-1)[0], 0)).chunk(4, dim=-1)[1]
        return 1 - torch.sigmoid(keep)


Cell = UpdateCell | GRU


def make_cell(rule: str, input_dim: int, hidden_dim: int, layers: int, gate_bias: float) -> Cell:
    """The cell of a rule: `UpdateCell`, or the standard cell that `gru` and `lstm` name.

    Raises:
        UserError: for an unknown rule, or a number of layers other than 1 and 2.
    """
    choose("rule", rule, rules.RULES)
    if layers not in (1, 2):
        raise UserError(f"layers is {layers}: a cell has 1 or 2 layers")
    if rule == "gru":
        return GRU(input_dim, hidden_dim, layers)
    if rule == "lstm":
        return LSTM(input_dim, hidden_dim, layers)
    return UpdateCell(input_dim, hidden_dim, rule, layers, gate_bias)
