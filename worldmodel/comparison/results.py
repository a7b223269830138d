"""What runs came to, as they lie in the folder of a comparison.

OUT/comparison.json                     the plan: axes, seeds, matched sizes, versions, how to reproduce
OUT/config.yaml                         the configuration that all runs share
OUT/runs/<variant>/s<seed>/             a run's folder, as `worldmodel fit` makes it, and in it
    result.json                         its Result, written last: a run that has one is finished
    curves.csv                          its Curves (loop, step, metric, value)
    examples.npz                        a few open-loop rollouts (see Example)
OUT/references/<name>.csv               the Curves of what needs no training: copy_last, mean, autoregression, kalman
OUT/references.json                     their errors at the horizons, and what each is
OUT/results.csv, verdict.json, report.html
"""

import csv
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodel.durable import whole_file

Loop = Literal["closed", "open"]
LOOPS: tuple[Loop, ...] = ("closed", "open")
DIVERGED = 100.0  # an error of a hundred variances, or one that is not finite


@dataclass(frozen=True)
class Curve:
    """An error, divided by the observations' variance, and the state's norm, step by step.

    In closed loop, step n is the prediction after n observed frames of an episode; in open loop, n steps after the last
    observed frame.
    """

    step: np.ndarray  # (N,) int: 1 .. N
    nmse: np.ndarray  # (N,) may be infinite
    hidden_norm: np.ndarray  # (N,) NaN where there is no hidden state
    count: np.ndarray  # (N,) predictions that the mean is over


Curves = dict[Loop, Curve]
Errors = dict[Loop, dict[int, float]]
"""loop -> horizon in steps -> error / variance. In closed loop, the mean over the steps behind the horizon before it
(or the start) up to this one; in open loop, at this step."""


@dataclass(frozen=True)
class Result:
    """One run: a variant trained with a seed."""

    variant: str  # its name, as in the plan: "gated_norm, carry"
    axes: dict[str, str]  # axis -> value: {"rule": "gated_norm", "start": "carry", "model.layers": "1"}
    seed: int
    errors: Errors
    valid_time: float  # steps, mean over the open-loop rollouts
    norm_growth: float  # slope of ||h|| over the steps of an episode, closed loop; infinite where it overflows
    parameters: int  # that are trained
    recurrence_parameters: int  # of them, in the recurrent cell
    hidden_dim: int
    flops: int  # multiplications and additions of one step of the cell and its head, one lane
    train_steps: int  # optimizer steps
    steps_per_second: float  # of training, without validation
    seconds: float  # the whole run, from start to end
    peak_memory_mb: float  # of the process; on a GPU, of the device's memory
    losses: dict[str, float]  # train/loss, val/loss of the last weights
    command: list[str]  # argv that trains this run again

    @property
    def diverged(self) -> bool:
        """Whether any of its errors is not finite, or above DIVERGED."""
        return any(is_diverged(error) for by_horizon in self.errors.values() for error in by_horizon.values())


@dataclass(frozen=True)
class Failure:
    """A run that came to no result."""

    variant: str
    axes: dict[str, str]
    seed: int
    reason: str  # one line
    log: str  # its output, relative to OUT


@dataclass(frozen=True)
class Reference:
    """Something that predicts without training: a baseline, or the floor."""

    name: str  # copy_last, mean, autoregression, kalman
    title: str  # in words: "Kalman filter (exact floor)"
    errors: Errors
    curves: Curves


@dataclass(frozen=True)
class ExampleRollout:
    """One open-loop rollout of a run, to be looked at. Frame 0 is the last that the model saw."""

    name: str  # the episode and its frame; the same for every run
    truth: np.ndarray  # (H + 1, E): at most a few entries of the observation
    prediction: np.ndarray  # (H, E), of frames 1 .. H
    entries: list[str]  # (E,) what they are called


@dataclass(frozen=True)
class Comparison:
    """Everything that verdict and report are made from."""

    folder: Path
    plan: dict[str, Any]  # comparison.json
    results: list[Result]
    failures: list[Failure] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        """Names in the order of the plan."""
        return list(dict.fromkeys(run["variant"] for run in self.plan["runs"]))

    @property
    def floor(self) -> Reference | None:
        """What nobody can beat, where it is known."""
        return next((reference for reference in self.references if reference.name == "kalman"), None)

    def folder_of(self, run: Result) -> Path:
        """Of a finished run."""
        slugs = {planned["variant"]: planned["slug"] for planned in self.plan["runs"]}
        return run_folder(self.folder, slugs[run.variant], run.seed)

    @cached_property
    def curves(self) -> dict[str, list[Curves]]:
        """Variant -> the curves of its finished runs, by seed; without runs whose file is gone. Read once."""
        found: dict[str, list[Curves]] = {}
        for variant in self.variants:
            for run in self.of(variant):
                path = self.folder_of(run) / "curves.csv"
                if path.is_file():
                    found.setdefault(variant, []).append(read_curves(path))
        return found

    def of(self, variant: str) -> list[Result]:
        """The variant's finished runs, by seed."""
        return sorted((run for run in self.results if run.variant == variant), key=lambda run: run.seed)


def is_diverged(error: float) -> bool:
    """Whether an error, divided by the variance, says that the model left the data behind."""
    return not error <= DIVERGED


def run_folder(out: Path, slug: str, seed: int) -> Path:
    """Where a run of the variant with this slug lies."""
    return out / "runs" / slug / f"s{seed}"


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`, whole or not at all."""
    write_json(folder / "result.json", asdict(result))


def read_result(folder: Path) -> Result | None:
    """The result of the run in this folder; None if it has not come to one."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    values = read_json(path)
    return Result(**{**values, "errors": _errors(values["errors"])})


def _errors(values: dict[Any, dict[str, float]]) -> Errors:
    """JSON knows no whole numbers as keys."""
    return {loop: {int(horizon): error for horizon, error in values[loop].items()} for loop in LOOPS if loop in values}


def write_references(out: Path, references: list[Reference]) -> None:
    """Write `references.json` and their curves."""
    (out / "references").mkdir(exist_ok=True)
    for reference in references:
        write_curves(out / "references" / f"{reference.name}.csv", reference.curves)
    write_json(out / "references.json", [{"name": r.name, "title": r.title, "errors": r.errors} for r in references])


def read_references(out: Path) -> list[Reference]:
    """What `write_references` wrote; nothing, where there is nothing."""
    path = out / "references.json"
    return [
        Reference(
            values["name"],
            values["title"],
            _errors(values["errors"]),
            read_curves(out / "references" / f"{values['name']}.csv"),
        )
        for values in (read_json(path) if path.is_file() else [])
    ]


def write_curves(path: Path, curves: Curves) -> None:
    """Write rows of loop, step, metric, value."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["loop", "step", "metric", "value"])
        for loop, curve in curves.items():
            for i, step in enumerate(curve.step):
                for metric in ("nmse", "hidden_norm", "count"):
                    writer.writerow([loop, int(step), metric, float(getattr(curve, metric)[i])])


def read_curves(path: Path) -> Curves:
    """What `write_curves` wrote."""
    found: dict[Loop, dict[str, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            loop: Loop = "closed" if row["loop"] == "closed" else "open"
            found.setdefault(loop, {}).setdefault(row["metric"], []).append(float(row["value"]))
    curves: Curves = {}
    for loop, columns in found.items():
        columns["step"] = list(range(1, len(columns["nmse"]) + 1))
        curves[loop] = Curve(**{name: np.array(values) for name, values in columns.items()})
    return curves


def write_examples(path: Path, examples: list[ExampleRollout]) -> None:
    """Write as npz without pickles."""
    arrays: dict[str, np.ndarray] = {}
    for i, example in enumerate(examples):
        arrays |= {
            f"{i}/name": np.array(example.name),
            f"{i}/truth": example.truth,
            f"{i}/prediction": example.prediction,
            f"{i}/entries": np.array(example.entries),
        }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def read_examples(path: Path) -> list[ExampleRollout]:
    """What `write_examples` wrote; nothing, where there is no file."""
    if not path.is_file():
        return []
    with np.load(path) as file:
        numbers = sorted({int(name.split("/")[0]) for name in file.files})
        return [
            ExampleRollout(
                str(file[f"{i}/name"]),
                file[f"{i}/truth"],
                file[f"{i}/prediction"],
                list(map(str, file[f"{i}/entries"])),
            )
            for i in numbers
        ]


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all; what is not finite becomes a text, since JSON has no word for it."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(_without_infinities(values), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return _with_infinities(json.loads(path.read_text()))


def _without_infinities(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case dict():
            return {str(key): _without_infinities(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_infinities(inner) for inner in value]
    return value


def _with_infinities(value: Any) -> Any:
    match value:
        case {"float": str(text), **rest} if not rest:
            return float(text)
        case dict():
            return {key: _with_infinities(inner) for key, inner in value.items()}
        case list():
            return [_with_infinities(inner) for inner in value]
    return value
