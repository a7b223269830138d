"""The standard cells, GRU and LSTM."""

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import Cell
from worldmodel.nets import affine


class GRU(Cell):
    """torch.nn.GRU's parameters and arithmetic, one step at a time. Stacked layers pack their states side by side."""

    rule = staticmethod(rules.gru)
    torch_cell: type[nn.GRU] | type[nn.LSTM] = nn.GRU
    states_per_layer = 1
    num_gates = 3  # matrices that torch packs into one, the second of them of the keep (update) gate

    def __init__(self, input_dim: int, hidden_dim: int, layers: int) -> None:
        super().__init__()
        self.rnn = self.torch_cell(input_dim, hidden_dim, num_layers=layers)
        self.layers = layers
        self.state_dim = self.states_per_layer * layers * hidden_dim
        self.read_dim = hidden_dim

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return self._linear(torch.cat([z, a], dim=-1), "ih", 0)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        states = []
        x = x.to(h.dtype)  # under autocast the matmuls are in half precision, the state is not
        for layer, state in enumerate(h.chunk(self.layers, dim=-1)):
            if layer:
                below = states[-1][..., : self.read_dim]
                x = self._linear(below, "ih", layer).to(h.dtype)
            states.append(self.update(x, state, layer))
        return torch.cat(states, dim=-1)

    def update(self, x: Tensor, state: Tensor, layer: int) -> Tensor:
        (r_x, k_x, n_x), (r_h, k_h, n_h) = x.chunk(3, dim=-1), self._recurrent(state, layer).chunk(3, dim=-1)
        return self.rule(state, r_x + r_h, k_x + k_h, n_x, n_h)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the first layer: one minus the keep gate."""
        keep = (x + self._recurrent(h.chunk(self.layers, dim=-1)[0], 0)).chunk(self.num_gates, dim=-1)[1]
        return 1 - torch.sigmoid(keep)

    def read(self, h: Tensor) -> Tensor:
        """The last layer's hidden vector."""
        return h.chunk(self.layers, dim=-1)[-1][..., : self.read_dim]

    def _linear(self, x: Tensor, name: str, layer: int) -> Tensor:
        return affine(x, *(getattr(self.rnn, f"{part}_{name}_l{layer}") for part in ("weight", "bias")))

    def _recurrent(self, state: Tensor, layer: int) -> Tensor:
        return self._linear(state[..., : self.read_dim], "hh", layer).to(state.dtype)


class LSTM(GRU):
    """torch.nn.LSTM's parameters and arithmetic. The state packs [hidden, cell] of each layer; heads see the hidden."""

    rule = staticmethod(rules.lstm)
    torch_cell = nn.LSTM
    states_per_layer = 2
    num_gates = 4

    def update(self, x: Tensor, state: Tensor, layer: int) -> Tensor:
        return self.rule(state, *(x + self._recurrent(state, layer)).chunk(4, dim=-1))
