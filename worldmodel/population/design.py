"""The design of a population: its members, the hyperparameters that change, and when members copy each other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from worldmodel.arguments import bounds, number
from worldmodel.errors import UserError, nearest

DIGITS = 4  # significant digits of a value
FORM = "write KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B,C"


@dataclass(frozen=True)
class Mutation:
    """A hyperparameter that changes: its range, or an ordered choice of numbers."""

    key: str
    low: float
    high: float
    log: bool = False
    choices: tuple[float, ...] = ()

    def draw(self, random: Random) -> float:
        """Draw a value to start from, uniformly, or log-uniformly."""
        if self.choices:
            return random.choice(self.choices)
        if self.log:
            return self.keep(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.keep(random.uniform(self.low, self.high))

    def keep(self, value: float) -> float:
        """Clip the value to the range and round it; choices stay as they are."""
        return value if self.choices else float(f"{min(max(value, self.low), self.high):.{DIGITS}g}")


def parse(texts: Iterable[str], allowed: Sequence[str]) -> list[Mutation]:
    """Read `KEY=LOW..HIGH`, `KEY=log:LOW..HIGH`, `KEY=A,B,C`.

    Args:
        texts: one for each hyperparameter.
        allowed: keys that can change during a fit.

    Raises:
        UserError: for other keys, naming the nearest, or an invalid range.
    """
    mutations: list[Mutation] = []
    for text in texts:
        key, _, values = text.removeprefix("--").partition("=")
        if key not in allowed:
            raise UserError(f"--mutate {key}: it cannot change during training; {nearest(key, allowed)}")
        if any(key == other.key for other in mutations):
            raise UserError(f"--mutate {key} is given twice")
        mutations.append(_mutation(text, key, values.replace(" ", "")))
    if not mutations:
        raise UserError(f"--mutate is empty, and a population needs something to vary: {FORM}")
    return mutations


def _mutation(text: str, key: str, values: str) -> Mutation:
    if (found := bounds("--mutate", text, values, FORM)) is not None:
        low, high, log = found
        if low < 0:
            raise UserError(f"--mutate {text}: {low:g} must be at least 0")
        return Mutation(key, low, high, log)
    choices = tuple(number("--mutate", text, value, FORM) for value in values.split(","))
    if len(set(choices)) < 2:
        raise UserError(f"--mutate {text}: one value is not a choice: {FORM}")
    return Mutation(key, min(choices), max(choices), choices=choices)


def starts(
    mutations: Iterable[Mutation], own: Mapping[str, float], population: int, seed: int
) -> list[dict[str, float]]:
    """Hyperparameters of each member at its start: the configuration's for the first, drawn ones for the others.

    Args:
        mutations: of the population.
        own: values in the configuration.
        population: number of members.
        seed: of the draws.
    """
    drawn = [
        {mutation.key: mutation.draw(Random(f"{seed}, {member}, {mutation.key}")) for mutation in mutations}
        for member in range(population)
    ]
    first = {m.key: own[m.key] if not m.choices or own[m.key] in m.choices else m.choices[0] for m in mutations}
    return [first, *drawn[1:]]


@dataclass(frozen=True)
class Population:
    """Everything that members and scheduler need, as plain data."""

    out: Path  # its folder
    config: str  # of the members, YAML
    defaults: dict[str, Any]  # of that configuration
    trains: str  # what members are, of options.KINDS
    data: str  # identifies the members' data
    size: int  # number of members
    interval: int  # optimizer steps between two exchanges
    last_step: int
    mutate: list[str]  # as given
    mutations: list[Mutation]  # the same, parsed
    starts: list[dict[str, float]]  # hyperparameters of each member at its start
    quantile: float  # share of the members that copy, and that are copied
    metric: str  # the score
    mode: Literal["min", "max"]
    seed: int
    data_seed: int
    threads: int  # of a member
    gpus: int  # 1 if members use a GPU
    keep: int  # checkpoints of a member

    @property
    def sign(self) -> int:
        """1 if the lowest score is the best, else -1."""
        return 1 if self.mode == "min" else -1

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the population, besides its configuration, as `population.json` holds it."""
        names = ("mutate", "quantile", "metric", "mode", "trains", "interval", "data")
        return {"population": self.size, **{name: getattr(self, name) for name in names}}

    def member(self, number: int) -> Path:
        """The folder of a member's run."""
        return self.out / f"member-{number}"
