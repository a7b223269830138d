"""Recurrent cells; see `update.Cell` for what each offers.

One file a family: `update` (rules whose proposals come from one matmul), `standard` (GRU, LSTM), `diagonal`, `triad`;
`recurrence` runs a cell through time, `fused` does so faster for the cells that it knows.
"""

from worldmodel import rules
from worldmodel.cells.diagonal import Diagonal
from worldmodel.cells.standard import GRU, LSTM
from worldmodel.cells.triad import Triad
from worldmodel.cells.update import Cell, Slots, UpdateCell
from worldmodel.errors import UserError, choose


def make_cell(rule: str, input_dim: int, hidden_dim: int, layers: int, gate_bias: float, tokens: bool = False) -> Cell:
    """The cell of a rule; `tokens` says that latents are embedded tokens.

    Raises:
        UserError: for an unknown rule, or a number of layers other than 1 and 2.
    """
    choose("rule", rule, rules.RULES)
    if layers not in (1, 2):
        raise UserError(f"layers is {layers}: a cell has 1 or 2 layers")
    if rule == "triad":
        return Triad(input_dim, hidden_dim, layers, gate_bias, tokens)
    if rule in ("gru", "lstm"):
        return {"gru": GRU, "lstm": LSTM}[rule](input_dim, hidden_dim, layers)
    if rule in ("diagonal", "slots"):
        return {"diagonal": Diagonal, "slots": Slots}[rule](input_dim, hidden_dim, layers, gate_bias)
    return UpdateCell(input_dim, hidden_dim, rule, layers, gate_bias)
