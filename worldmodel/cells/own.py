"""The cell around a rule of the user's own, `file.py:name`."""

from collections.abc import Callable
from inspect import Parameter, signature

import torch

from worldmodel import parts
from worldmodel.cells.update import Cell, UpdateCell, proposed_by
from worldmodel.errors import reason_of

LANES = 3  # of a trial


def own_cell(name: str, input_dim: int, hidden_dim: int, layers: int, gate_bias: float) -> Cell:
    """A function as the rule of an UpdateCell; a class is the cell itself, given what it has parameters for.

    Raises:
        PartError: if it is neither, or one step of it fails.
    """
    part = parts.load(name, "rule")

    def make() -> Cell:
        if isinstance(part, type):
            return parts.called(name, "rule", input_dim, hidden_dim, layers=layers, gate_bias=gate_bias)
        return UpdateCell(input_dim, hidden_dim, part, layers, gate_bias)

    if isinstance(part, type):
        if not issubclass(part, Cell):
            raise parts.misfit(name, "rule", "it is a class, and not of Cell")
    elif not callable(part):
        raise parts.misfit(name, "rule", f"it is {type(part).__name__}")
    elif not _takes_proposals(part):
        raise parts.misfit(name, "rule", f"it takes {signature(part)}")
    _try(name, make, input_dim)
    return make()


def _takes_proposals(rule: Callable) -> bool:
    kinds = {each.kind for each in signature(rule).parameters.values() if each.default is each.empty}
    return bool(proposed_by(rule)) and kinds <= {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}


def _try(name: str, make: Callable[[], Cell], input_dim: int) -> None:
    """Take one step from an episode's start, on the CPU, whatever device a model is made for."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        cell = make()
        try:
            h = torch.zeros(LANES, cell.state_dim)
            after = cell.step(cell.project(torch.randn(LANES, input_dim), torch.zeros(LANES, 0)), h)
            read = cell.read(after)
        except Exception as error:  # of the user's code: of any type
            raise parts.misfit(name, "rule", f"a step raises {reason_of(error)}") from error
    for what, given, width in ("h_next", after, cell.state_dim), ("read(h)", read, cell.read_dim):
        if given.shape != (LANES, width):
            raise parts.misfit(name, "rule", f"{what} of {LANES} lanes is {tuple(given.shape)}, not {(LANES, width)}")
        if not given.isfinite().all():
            raise parts.misfit(name, "rule", f"{what} is not finite after a first step, from zeros")


def check_members(name: str, cell: Cell, members: int, input_dim: int) -> None:
    """Raise PartError if members of a user's cell cannot stand side by side: their parameters have an axis more."""
    device = next((parameter.device for parameter in cell.parameters()), None)
    z, h = (torch.zeros(members, LANES, width, device=device) for width in (input_dim, cell.state_dim))
    try:
        with torch.no_grad():
            after = cell.step(cell.project(z, z[..., :0]), h)
        fits = after.shape == h.shape
    except Exception as error:  # of the user's code: of any type
        fits, why = False, reason_of(error)
    else:
        why = f"h_next is {tuple(after.shape)}, not {tuple(h.shape)}"
    if not fits:
        raise parts.PartError(
            f"{name} cannot stand side by side as {members} members ({why}): its layers get weights with an axis in"
            " front, which worldmodel.nets.linear takes; or leave model.members out"
        )
