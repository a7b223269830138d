"""Hidden sizes that make a comparison fair: the same number of parameters, or of operations, for every rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.errors import UserError
from worldmodel.modules.world_model import WorldModel

Match = Literal["params", "hidden", "flops"]
MATCHES: tuple[Match, ...] = ("params", "hidden", "flops")
TOLERANCE = 0.02


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    hidden_dim: int
    parameters: int  # that are trained
    recurrence_parameters: int  # of them, in the recurrent cell
    flops: int  # multiplications and additions of one step of the cell and its head, one lane


def size_of(arguments: Mapping[str, Any]) -> Size:
    """The size of `WorldModel(**arguments)`, without its memory: it is made on torch's meta device."""
    with torch.device("meta"):
        model = WorldModel(**{name: value for name, value in arguments.items() if not name.startswith("_")})
        predictor, hp = model.predictor, model.hparams
        z, h, a = (torch.zeros(1, dim) for dim in (hp["latent_dim"], predictor.state_dim, hp["action_dim"]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            predictor(z, h, a)
    return Size(
        hp["hidden_dim"],
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(p.numel() for p in predictor.cell.parameters()),
        counter.get_total_flops(),
    )


def matched(name: str, arguments: Mapping[str, Any], reference: Size, match: Match) -> Size:
    """The hidden size that comes nearest to the reference, whatever hidden size the arguments name.

    Args:
        name: of the variant, for the message.
        arguments: of its WorldModel.
        reference: what to come up to.
        match: `params` trained, `flops` of a step, or `hidden`: the arguments as they are.

    Raises:
        UserError: naming what can be reached, if that is not within 2%.
    """
    if match == "hidden":
        return size_of(arguments)
    wanted = amount(reference, match)

    def at(hidden_dim: int) -> Size:
        return size_of({**arguments, "hidden_dim": hidden_dim})

    above = _first_reaching(lambda hidden_dim: amount(at(hidden_dim), match) >= wanted)
    near = [at(hidden_dim) for hidden_dim in (above - 1, above) if hidden_dim >= 1]
    best = min(near, key=lambda size: abs(amount(size, match) - wanted))
    if abs(difference(best, reference, match)) > TOLERANCE:
        unit = "parameters" if match == "params" else "flops a step"
        reached = " and ".join(f"hidden_dim {size.hidden_dim} has {amount(size, match):,}" for size in near)
        raise UserError(
            f"{name} cannot be matched within {TOLERANCE:.0%} to the {wanted:,} {unit} of the configuration:"
            f" {reached}; raise --model.hidden_dim, or compare equal hidden sizes with --match hidden"
        )
    return best


def amount(size: Size, match: Match) -> int:
    """What is compared: flops, or parameters, which `hidden` is judged by too."""
    return size.flops if match == "flops" else size.parameters


def difference(size: Size, reference: Size, match: Match) -> float:
    """(size - reference) / reference, of what is compared."""
    return amount(size, match) / amount(reference, match) - 1


def _first_reaching(reaches: Callable[[int], bool]) -> int:
    """The smallest number from 1 on for which a monotonous condition holds."""
    high = 1
    while not reaches(high):
        high *= 2
    low = high // 2  # does not reach, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
