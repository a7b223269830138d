"""Recurrent cells: parameters around an update rule.

A cell has three parts, so that only what depends on h is inside the time loop:

    project(z, a) -> x      the inputs of a whole segment in one matmul, in any leading shape
    step(x_t, h) -> h_next  one step
    read(h)                 what the heads see of the state

and `gate(x, h)`, the share of each entry that a step overwrites (None for a rule without a gate). `state_dim` is the
width of h, `read_dim` that of read(h). The state at an episode's start is zeros. One file a family: `update` (a rule
with its gate and candidate), `standard` (GRU, LSTM), `diagonal`, `slots`, `triad`; `memoryless` is for policies alone.
"""

from worldmodel import rules
from worldmodel.cells.diagonal import Diagonal
from worldmodel.cells.memoryless import Memoryless
from worldmodel.cells.slots import Slots
from worldmodel.cells.standard import GRU, LSTM
from worldmodel.cells.triad import Triad
from worldmodel.cells.update import UpdateCell
from worldmodel.errors import UserError, choose

Cell = UpdateCell | GRU | Diagonal | Slots | Triad | Memoryless


def make_cell(rule: str, input_dim: int, hidden_dim: int, layers: int, gate_bias: float, tokens: bool = False) -> Cell:
    """The cell of a rule: `UpdateCell`, or one of their own for `gru`, `lstm`, `diagonal`, `slots` and `triad`.

    `tokens` says that latents are embedded tokens, which triad alone asks about.

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
    if rule == "diagonal":
        return Diagonal(input_dim, hidden_dim, layers, gate_bias)
    if rule == "slots":
        return Slots(input_dim, hidden_dim, layers, gate_bias)
    if rule == "triad":
        return Triad(input_dim, hidden_dim, layers, gate_bias, tokens)
    return UpdateCell(input_dim, hidden_dim, rule, layers, gate_bias)
