"""The results of a comparison's runs, and the files that hold them.

OUT/comparison.json                     the design: axes, seeds, matched sizes, versions, every run's command
OUT/config.yaml                         the configuration that all runs share
OUT/runs/<variant>/s<seed>/             a run's folder, as `worldmodel fit` makes it, and in it
    result.json                         its Result, written last: a run that has one is finished
    curves.csv                          its Curves (loop, step, metric, value)
    examples.npz                        a few open-loop rollouts (see ExampleRollout)
    SHA256SUMS                          of these three
OUT/tune/<variant>/t<n>/                a trial of the tuning, a run's folder too, and in it
    trial.json                          its scores at the rungs that it has reached
OUT/references/<name>.csv               Curves of the references: copy_last, mean, autoregression, kalman
OUT/references.json                     their titles, and their errors at the horizons
OUT/results.csv, verdict.json, results.md, report.html

comparison.json, config.yaml, references.json and failures.json have their SHA-256 beside them (`.sha256`).
"""

import csv
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodel.comparison.tuning import Tuned, Tuning
from worldmodel.durable import intact, read_json, sha256, whole_file, write_json
from worldmodel.errors import Damaged

Loop = Literal["closed", "open"]
LOOPS: tuple[Loop, ...] = ("closed", "open")
CONFIG = "config.yaml"
MEASURED = ("result.json", "curves.csv", "examples.npz")  # of a run
SUMS = "SHA256SUMS"
REPEAT = "remove it, and the same command makes it again"
DIVERGED = 100.0  # variances: a run whose error is above it, or not finite, has diverged


@dataclass(frozen=True)
class Curve:
    """Error / variance of the observations, and the norm of the state, step by step.

    In closed loop, step n is the prediction after n observed frames of an episode; in open loop, n steps after the last
    observed frame.
    """

    step: np.ndarray  # (N,) int: 1 .. N
    nmse: np.ndarray  # (N,) may be infinite
    hidden_norm: np.ndarray  # (N,) NaN where there is no hidden state
    count: np.ndarray  # (N,) predictions that each mean is over


Curves = dict[Loop, Curve]
Errors = dict[Loop, dict[int, float]]
"""loop -> horizon in steps -> error / variance. Open loop: at this step. Closed loop: the mean over the steps after the
previous horizon (or the start), up to this one."""
ScoresAt = dict[str, dict[int, float]]
"""Of a model with a distribution, name -> horizon in steps -> value; see evaluation.calibration.Calibration."""


@dataclass(frozen=True)
class Result:
    """The result of one run: a variant trained with one seed."""

    variant: str  # its name: "gated_norm, carry"
    axes: dict[str, str]  # axis -> value: {"rule": "gated_norm", "start": "carry", "model.layers": "1"}
    seed: int
    errors: Errors
    valid_time: float  # steps, mean over the open-loop rollouts
    norm_growth: float  # slope of ||h|| over the steps of an episode, closed loop; infinite where it overflows
    parameters: int  # trainable
    recurrence_parameters: int  # of them, in the recurrent cell
    hidden_dim: int
    flops: int  # of one step of the cell and its head, one lane
    train_steps: int  # optimizer steps
    steps_per_second: float  # of training, without validation
    seconds: float  # the whole run
    peak_memory_mb: float  # of the process; on a GPU, of the device's memory
    losses: dict[str, float]  # train/loss, val/loss of the last weights
    command: list[str]  # argv that trains this run again
    scores: ScoresAt = field(default_factory=dict)  # empty: it predicts points

    @property
    def diverged(self) -> bool:
        """Whether the run diverged at any horizon."""
        return any(is_diverged(error) for by_horizon in self.errors.values() for error in by_horizon.values())


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result."""

    variant: str
    axes: dict[str, str]
    seed: int
    reason: str  # one line
    log: str  # path of its output, relative to OUT


@dataclass(frozen=True)
class Reference:
    """A predictor without training: a baseline, or the floor."""

    name: str  # copy_last, mean, autoregression, kalman
    title: str  # in words: "Kalman filter, the floor"
    errors: Errors
    curves: Curves


@dataclass(frozen=True)
class ExampleRollout:
    """One open-loop rollout of a run, for the report. Frame 0 is the last that the model observed."""

    name: str  # the episode and its frame; the same for every run
    truth: np.ndarray  # (H + 1, E): at most a few entries of the observation
    prediction: np.ndarray  # (H, E), of frames 1 .. H
    entries: list[str]  # (E,) names of the entries


@dataclass(frozen=True)
class Comparison:
    """Everything that verdict and report are made from."""

    folder: Path
    design: dict[str, Any]  # comparison.json
    results: list[Result]
    failures: list[Failure] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)  # of each variant, where they are tuned

    @property
    def variants(self) -> list[str]:
        """Names in the order of the design."""
        return list(self.axes)

    @property
    def axes(self) -> dict[str, dict[str, str]]:
        """Variant -> its value on each axis."""
        return {run["variant"]: run["axes"] for run in self.design["runs"]}

    @property
    def tuning(self) -> Tuning | None:
        """The plan of the tuning, if there is one."""
        return Tuning.read(self.design["tuning"]) if "tuning" in self.design else None

    @property
    def floor(self) -> Reference | None:
        """The reference that no model can beat, where it is known."""
        return next((reference for reference in self.references if reference.name == "kalman"), None)

    def folder_of(self, run: Result) -> Path:
        """The folder of a finished run."""
        slugs = {planned["variant"]: planned["slug"] for planned in self.design["runs"]}
        return run_folder(self.folder, slugs[run.variant], run.seed)

    @cached_property
    def curves(self) -> dict[str, list[Curves]]:
        """Variant -> the curves of its finished runs, by seed, as far as their files exist. Read once."""
        found: dict[str, list[Curves]] = {}
        for variant in self.variants:
            paths = [self.folder_of(run) / "curves.csv" for run in self.of(variant)]
            if curves := [read_curves(path) for path in paths if path.is_file()]:
                found[variant] = curves
        return found

    @property
    def by_variant(self) -> dict[str, list[Result]]:
        """Variant -> its finished runs, by seed."""
        return {variant: self.of(variant) for variant in self.variants}

    def of(self, variant: str) -> list[Result]:
        """The variant's finished runs, by seed."""
        return sorted((run for run in self.results if run.variant == variant), key=lambda run: run.seed)


def is_diverged(error: float) -> bool:
    """Whether an error, divided by the variance, means that the run has diverged."""
    return not error <= DIVERGED


def run_folder(out: Path, slug: str, seed: int) -> Path:
    """The folder of a run."""
    return out / "runs" / slug / f"s{seed}"


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`, then the digests of all that was measured, each whole or not at all."""
    write_json(folder / "result.json", asdict(result))
    with whole_file(folder / SUMS) as temporary:
        there = [folder / name for name in MEASURED if (folder / name).is_file()]
        temporary.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in there))


def read_result(folder: Path) -> Result | None:
    """The result of the run in this folder; None if it has none yet.

    Raises:
        Damaged: naming the file, if one of those that were measured is not what was written.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    with intact(folder / SUMS, REPEAT):
        sums = (folder / SUMS).read_text().splitlines() if (folder / SUMS).is_file() else []
    for name in (line.split("  ")[-1] for line in sums):
        if name in MEASURED and (folder / name).is_file() and f"{sha256(folder / name)}  {name}" not in sums:
            raise Damaged(f"{folder / name} is damaged: its SHA-256 is not that of {SUMS}")
    with intact(path, REPEAT):
        values = read_json(path)
        scores = {name: _by_horizon(of) for name, of in values.get("scores", {}).items()}
        return Result(**{**values, "errors": _errors(values["errors"]), "scores": scores})


def _errors(values: dict[Any, dict[str, float]]) -> Errors:
    return {loop: _by_horizon(values[loop]) for loop in LOOPS if loop in values}


def _by_horizon(values: dict[Any, float]) -> dict[int, float]:
    """Horizons as integers: JSON has only strings as keys."""
    return {int(horizon): value for horizon, value in values.items()}


def write_references(out: Path, references: list[Reference]) -> None:
    """Write `references.json` and their curves."""
    (out / "references").mkdir(exist_ok=True)
    rows = []
    for reference in references:
        path = out / "references" / f"{reference.name}.csv"
        write_curves(path, reference.curves)
        about = {"name": reference.name, "title": reference.title, "errors": reference.errors}
        rows.append(about | {"sha256": sha256(path)})
    write_json(out / "references.json", rows, summed=True)


def read_references(out: Path) -> list[Reference]:
    """What `write_references` wrote; empty if the file does not exist."""
    path = out / "references.json"
    if not path.is_file():
        return []
    references = []
    with intact(path, REPEAT):
        for row in read_json(path):
            curves = out / "references" / f"{row['name']}.csv"
            if row.get("sha256") not in (None, sha256(curves)):
                raise Damaged(f"{curves} is damaged: its SHA-256 is not that of {path.name}")
            references.append(Reference(row["name"], row["title"], _errors(row["errors"]), read_curves(curves)))
    return references


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
    columns: dict[str, dict[str, list[float]]] = {}
    with intact(path, REPEAT):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                columns.setdefault(row["loop"], {}).setdefault(row["metric"], []).append(float(row["value"]))
        arrays = {loop: {name: np.array(values) for name, values in of.items()} for loop, of in columns.items()}
        return {loop: Curve(np.arange(1, len(of["nmse"]) + 1), **of) for loop in LOOPS if (of := arrays.get(loop))}


def write_examples(path: Path, examples: list[ExampleRollout]) -> None:
    """Write as npz without pickles."""
    arrays = {f"{i}/{name}": np.array(of) for i, example in enumerate(examples) for name, of in vars(example).items()}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def read_examples(path: Path) -> list[ExampleRollout]:
    """What `write_examples` wrote; empty if the file does not exist."""
    if not path.is_file():
        return []
    with intact(path, REPEAT), np.load(path) as file:
        count = len({name.split("/")[0] for name in file.files})
        examples = [{name: file[f"{i}/{name}"] for name in ExampleRollout.__annotations__} for i in range(count)]
    return [
        ExampleRollout(str(of["name"]), of["truth"], of["prediction"], list(map(str, of["entries"]))) for of in examples
    ]
