"""The tuning of a comparison: what is tried for each variant, and successive halving, which decides who goes on.

All variants try the same values. A trial is a fit of the full length that pauses at each rung (a third of the steps
to the next, the last one being all of them): a rung's best third go on from their checkpoints, so that no step is
trained twice, and the learning rate is where it would be at this step of the full schedule. Two reach the last rung,
where the winner is decided at the full length. Decisions depend on the rungs' scores alone, neither on their order in
time nor on what else runs: a tuning that was interrupted comes to the same (Jamieson & Talwalkar, AISTATS 2016).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from scipy.stats import qmc

from worldmodel.arguments import bounds, number, same_command
from worldmodel.durable import intact, read_json, write_json
from worldmodel.errors import Damaged, UserError

SEED = 1_000_000  # of every trial, and of the draws
KEPT = 3  # one of so many goes on to the next rung, whose steps are so many times more
FINALISTS = 2
DRAWS = 64  # for each trial, before a range counts as exhausted
FORM = "write KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B,C"
RECORD = "trial.json"


@dataclass(frozen=True)
class Range:
    """What an option may be in a trial: numbers between two, or one of `choices`."""

    key: str
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False  # whole numbers alone
    choices: tuple[str, ...] = ()

    def at(self, share: float) -> str:
        """The value at this share of the range, from 0 to 1, as an option takes it."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return str(round(value)) if self.whole else f"{min(max(value, self.low), self.high):.3g}"

    def holds(self, value: Any) -> bool:
        """Whether an option's value lies in the range."""
        if self.choices:
            return str(value) in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def ends(self) -> list[str]:
        """Its outermost values, or all choices."""
        return list(self.choices) or [self.at(0), self.at(1)]

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key} {', '.join(self.choices)}"
        return f"{self.key} {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


def ranges_of(texts: Iterable[str], own: Mapping[str, Any]) -> list[Range]:
    """The ranges of --tune.

    Args:
        texts: `KEY=LOW..HIGH`, `KEY=log:LOW..HIGH` or `KEY=A,B,C`.
        own: the configuration's values, by key.

    Raises:
        UserError: for one that is empty, malformed or given twice.
    """
    found: list[Range] = []
    for text in texts:
        key, _, values = text.removeprefix("--").partition("=")
        values = values.replace(" ", "")
        if not values:
            raise UserError(f"--tune {text}: {FORM}")
        if any(key == other.key for other in found):
            raise UserError(f"--tune {key} is given twice: list all its values at once")
        whole = isinstance(own.get(key), int) and not isinstance(own.get(key), bool)
        if (limits := bounds("--tune", text, values, FORM)) is not None:
            found.append(Range(key, *limits, whole=whole))
            continue
        if values.startswith("log:") or ".." in values:
            for word in values.removeprefix("log:").split(".."):
                number("--tune", text, word, FORM)
        choices = tuple(values.split(","))
        if len(set(choices)) < max(2, len(choices)) or not all(choices):
            raise UserError(f"--tune {text}: it names no two values, or one twice: {FORM}")
        found.append(Range(key, whole=whole, choices=choices))
    return found


def trials_of(ranges: Sequence[Range], own: Mapping[str, Any], count: int) -> list[dict[str, str]]:
    """The values of each trial: the configuration's, where they lie in the ranges, then points of a Sobol sequence.

    Fewer than `count` where the ranges hold no more values.
    """
    trials = []
    if all(each.holds(own.get(each.key)) for each in ranges):
        trials.append({each.key: str(own[each.key]) for each in ranges})
    seen = {_number(trial) for trial in trials}
    points = qmc.Sobol(len(ranges), scramble=True, rng=SEED).random_base2(math.ceil(math.log2(DRAWS * count)))
    for point in points.tolist():
        trial = {each.key: each.at(share) for each, share in zip(ranges, point, strict=True)}
        if len(trials) < count and _number(trial) not in seen:
            trials.append(trial)
            seen.add(_number(trial))
    return trials


def _number(trial: Mapping[str, str]) -> tuple[float | str, ...]:
    """The values, in which 0.001 is 1e-3."""
    return tuple(value_of(text) for text in trial.values())


def value_of(text: str) -> float | str:
    """The number that a value is, or the word."""
    with suppress(ValueError):
        return float(text)
    return text


@dataclass(frozen=True)
class Rung:
    """A step at which trials pause, and how many of a variant's get there."""

    steps: int
    trials: int


def rungs_of(trials: int, steps: int) -> list[Rung]:
    """The rungs of one variant's tuning, the last of which is the full length of `steps`."""
    counts = [trials]
    while counts[-1] > FINALISTS:
        counts.append(max(FINALISTS, math.ceil(counts[-1] / KEPT)))
    last = len(counts) - 1
    at = [max(i + 1, round(steps / KEPT ** (last - i))) for i in range(last)] + [steps]
    return [Rung(step, count) for step, count in zip(at, counts, strict=True)]


@dataclass(frozen=True)
class Tuning:
    """The plan of a tuning, as the design holds it: the same for every variant."""

    ranges: list[Range]
    trials: list[dict[str, str]]  # key -> value
    rungs: list[Rung]
    metric: str  # of the validation
    mode: Literal["min", "max"]  # whether low or high scores are good
    asked: list[str]  # --tune
    count: int  # --trials

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Tuning":
        """From a design."""
        ranges = [Range(**{**each, "choices": tuple(each["choices"])}) for each in values["ranges"]]
        rungs = [Rung(**each) for each in values["rungs"]]
        return cls(**{field.name: values[field.name] for field in fields(cls)} | {"ranges": ranges, "rungs": rungs})

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @property
    def steps(self) -> int:
        """Optimizer steps that the tuning of one variant takes."""
        before = [0, *(rung.steps for rung in self.rungs)]
        return sum(rung.trials * (rung.steps - start) for rung, start in zip(self.rungs, before, strict=False))

    def course(self, scores: Sequence[Mapping[int, float]]) -> "Course":
        """How far a variant's trials have come.

        Args:
            scores: of each trial, by the steps of the rungs that it has reached.
        """
        left = list(range(len(self.trials)))
        for level, rung in enumerate(self.rungs):
            left = sorted(left[: rung.trials])  # the best of the rung before
            if waiting := [trial for trial in left if rung.steps not in scores[trial]]:
                return Course(waiting, level, None)
            left.sort(key=lambda trial: self.loss(scores[trial][rung.steps]))
        return Course([], len(self.rungs) - 1, left[0])

    def budget(self) -> str:
        """What one variant's tuning takes, in words."""
        levels = ", ".join(f"{rung.trials} to step {rung.steps:,}" for rung in self.rungs)
        return f"{len(self.trials)} trials ({levels}: {self.steps:,} steps in all)"

    def loss(self, score: float) -> float:
        """A score of which the lowest is the best; one that is not finite is the worst."""
        return math.inf if not math.isfinite(score) else score if self.mode == "min" else -score


@dataclass(frozen=True)
class Course:
    """How far the trials of a variant have come."""

    waiting: list[int]  # trials that have yet to reach the rung
    rung: int  # its number
    winner: int | None  # once the last rung is done


@dataclass(frozen=True)
class Tuned:
    """What the tuning of a variant has come to."""

    variant: str
    scores: list[dict[int, float]]  # of each trial, by the steps of the rungs that it has reached
    winner: int | None  # the number of a trial; None: the tuning has not ended


def trial_folder(out: Path, slug: str, number: int) -> Path:
    """The folder of a trial, which is a run."""
    return out / "tune" / slug / f"t{number}"


def read_scores(folder: Path, command: list[str]) -> dict[int, float]:
    """The scores of a trial by step, of this command; none where its record is missing, damaged or another's."""
    with suppress(Damaged):
        record = check_record(folder)
        if same_command(record["command"], command):
            return record["scores"]
    return {}


def check_record(folder: Path) -> dict[str, Any]:
    """What `write_score` wrote; without a command, if it has not.

    Raises:
        Damaged: naming the file.
    """
    path = folder / RECORD
    if not path.is_file():
        return {"command": []}
    with intact(path, "remove it, and the same command trains the trial again"):
        record = read_json(path)
        scores = {int(step): float(score) for step, score in record["scores"].items()}
        return {"command": list(record["command"]), "scores": scores}


def write_score(folder: Path, command: list[str], step: int, score: float) -> None:
    """Add a score to a trial's record."""
    scores = read_scores(folder, command) | {step: score}
    write_json(folder / RECORD, {"command": command, "scores": scores}, summed=True)
