"""Recurrent cells; see `update.Cell` for what each offers.

One file a family: `update` (rules whose proposals come from one matmul), `standard` (GRU, LSTM), `diagonal`, `triad`,
`affine` (linear, driven by the input alone), `matrix` (matrices of values by keys, attention); `stack` puts two cells
on top of each other, `own` is around a user's own rule. `recurrence` runs a cell through time, `fused` does so faster
for the cells that it knows.
"""

from worldmodel import parts, rules
from worldmodel.cells.affine import LRU, MinGRU
from worldmodel.cells.diagonal import Diagonal
from worldmodel.cells.matrix import Attention, MatrixCell
from worldmodel.cells.own import own_cell
from worldmodel.cells.stack import Stack
from worldmodel.cells.standard import GRU, LSTM
from worldmodel.cells.triad import Triad
from worldmodel.cells.update import SLSTM, Cell, Slots, UpdateCell
from worldmodel.errors import UserError, choose


def make_cell(rule: str, input_dim: int, hidden_dim: int, layers: int, gate_bias: float, tokens: bool = False) -> Cell:
    """The cell of a rule; `tokens` says that latents are embedded tokens.

    Raises:
        UserError: for an unknown rule, one of the user's own that is none, or a number of layers other than 1 and 2.
    """
    check_rule(rule)
    if layers not in (1, 2):
        raise UserError(f"layers is {layers}: a cell has 1 or 2 layers")
    if parts.is_own(rule):
        return own_cell(rule, input_dim, hidden_dim, layers, gate_bias)
    if rule == "triad":
        return Triad(input_dim, hidden_dim, layers, gate_bias, tokens)
    if rule in ("gru", "lstm", "slstm"):
        return {"gru": GRU, "lstm": LSTM, "slstm": SLSTM}[rule](input_dim, hidden_dim, layers)
    if rule in ("diagonal", "slots"):
        return {"diagonal": Diagonal, "slots": Slots}[rule](input_dim, hidden_dim, layers, gate_bias)
    if rule in ("lru", "mingru", "mamba2", "gated_delta", "mlstm", "attention"):
        lower = _block(rule, input_dim, hidden_dim, gate_bias)
        return lower if layers == 1 else Stack(lower, _block(rule, hidden_dim, hidden_dim, gate_bias), hidden_dim)
    return UpdateCell(input_dim, hidden_dim, rule, layers, gate_bias)


def check_rule(rule: str, *further: str) -> None:
    """Raise UserError for a rule that is neither in RULES, nor one of `further` names, nor of the user's own code."""
    if rule.endswith(".py"):
        raise UserError(f"name the rule in {rule} too: {rule}:NAME")
    if not parts.is_own(rule):
        choose("rule", rule, [*rules.RULES, *further])


def _block(rule: str, input_dim: int, hidden_dim: int, gate_bias: float) -> Cell:
    """One layer of a rule whose two layers are stacked."""
    if rule == "lru":
        return LRU(input_dim, hidden_dim)
    if rule == "mingru":
        return MinGRU(input_dim, hidden_dim, gate_bias)
    if rule == "attention":
        return Attention(input_dim, hidden_dim)
    return MatrixCell(input_dim, hidden_dim, rule)
