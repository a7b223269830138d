"""Hyperparameters that change while a population trains: their ranges, where members start, what stays inside."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from worldmodel.errors import UserError, nearest

RANGE = re.compile(r"(?P<low>[^:,.]+(?:\.\d*)?(?:[eE][+-]?\d+)?)\.\.(?P<high>[^:(]+?)(?P<log>:log|\(log\))?")
DIGITS = 4  # that a value keeps: it is read in tables and configurations
FORM = "write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C"


@dataclass(frozen=True)
class Mutation:
    """One hyperparameter: a range, or numbers to choose among, in their order."""

    key: str
    low: float
    high: float
    log: bool = False
    choices: tuple[float, ...] = ()

    def draw(self, random: Random) -> float:
        """A value to start from: uniform, in the logarithm where the range is one."""
        if self.choices:
            return random.choice(self.choices)
        if self.log:
            return self.keep(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.keep(random.uniform(self.low, self.high))

    def keep(self, value: float) -> float:
        """The value inside the range, with a few digits; choices as they are."""
        return value if self.choices else float(f"{min(max(value, self.low), self.high):.{DIGITS}g}")


def parse(texts: Iterable[str], allowed: Sequence[str]) -> list[Mutation]:
    """Read `KEY=LOW..HIGH`, `KEY=LOW..HIGH:log`, `KEY=A,B,C`.

    Args:
        texts: one a hyperparameter.
        allowed: keys that can change while a fit runs.

    Raises:
        UserError: for another key, naming the nearest, or a range that is none.
    """
    mutations: list[Mutation] = []
    for text in texts:
        key, _, values = text.removeprefix("--").partition("=")
        if key not in allowed:
            raise UserError(f"--mutate {key}: it cannot change while a member trains; {nearest(key, allowed)}")
        if any(key == other.key for other in mutations):
            raise UserError(f"--mutate {key} is given twice")
        mutations.append(_mutation(text, key, values.replace(" ", "")))
    if not mutations:
        raise UserError(f"--mutate names nothing, and a population needs something to choose among: {FORM}")
    return mutations


def _mutation(text: str, key: str, values: str) -> Mutation:
    if found := RANGE.fullmatch(values):
        low, high = _number(text, found["low"]), _number(text, found["high"])
        if not low < high:
            raise UserError(f"--mutate {text}: {found['low']} is not below {found['high']}")
        if low < 0 or (found["log"] and low == 0):
            least = "above 0, as its logarithm is drawn" if found["log"] else "at least 0"
            raise UserError(f"--mutate {text}: {found['low']} must be {least}")
        return Mutation(key, low, high, bool(found["log"]))
    choices = tuple(_number(text, value) for value in values.split(","))
    if len(set(choices)) < 2:
        raise UserError(f"--mutate {text}: one value is no choice: {FORM}")
    return Mutation(key, min(choices), max(choices), choices=choices)


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"--mutate {text}: {word!r} is no number: {FORM}")
    return value


def starts(
    mutations: Iterable[Mutation], own: Mapping[str, float], population: int, seed: int
) -> list[dict[str, float]]:
    """What each member begins with: the first with the configuration's own values, the others with drawn ones.

    Args:
        mutations: of the population.
        own: values of the configuration.
        population: members.
        seed: of the draws.
    """
    drawn = [
        {mutation.key: mutation.draw(Random(f"{seed}, {member}, {mutation.key}")) for mutation in mutations}
        for member in range(population)
    ]
    first = {m.key: own[m.key] if not m.choices or own[m.key] in m.choices else m.choices[0] for m in mutations}
    return [first, *drawn[1:]]
