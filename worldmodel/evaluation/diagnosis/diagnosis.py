"""All measurements of one model on a few batches: as numbers, on a terminal, as a figure, and what they mean."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from matplotlib.figure import Figure
from rich.console import Console

from worldmodel.batch import Batch
from worldmodel.evaluation.cause import Cause
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.diagnosis.baselines import Baselines
from worldmodel.evaluation.diagnosis.clock import Clock
from worldmodel.evaluation.diagnosis.gates import Gates
from worldmodel.evaluation.diagnosis.gradients import Gradients
from worldmodel.evaluation.diagnosis.growth import Growth
from worldmodel.evaluation.diagnosis.jacobian import Spectrum
from worldmodel.evaluation.diagnosis.lags import Lags
from worldmodel.evaluation.diagnosis.measurement import BLUE, RED, Diagnosable, Finding, Measurement, Subject, table
from worldmodel.evaluation.diagnosis.representation import Representations

# In the order in which they are measured, printed and drawn.
MEASUREMENTS: tuple[type[Measurement], ...] = (
    *(Baselines, Gradients, Growth, Spectrum, Lags),
    *(Representations, Gates, Clock),
)
ROWS = 2  # of panels in the figure

M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True)
class Diagnosis:
    """Results of the measurements; where parameters are not finite, of `Gradients` alone."""

    subject: Subject
    results: dict[type[Measurement], Measurement | None]

    def __getitem__(self, kind: type[M]) -> M | None:
        return cast(M | None, self.results.get(kind))

    @property
    def _shown(self) -> list[type[Measurement]]:
        return [kind for kind in MEASUREMENTS if self[kind] is not None or not kind.optional]

    @property
    def findings(self) -> list[Finding]:
        """Faults, the weightiest first; empty for a healthy model."""
        results = [result for result in self.results.values() if result is not None]
        found = [finding for result in results for finding in result.findings(self.subject)]
        return sorted(found, key=lambda finding: -finding.weight)

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is null, as JSON wants it."""
        lanes, steps = self.subject.stretch["valid"].shape
        values: dict[str, Any] = {"rule": self.subject.rule, "gradient": self.subject.gradient}
        values |= {"horizon": self.subject.horizon, "steps": steps, "lanes": lanes}
        for kind in MEASUREMENTS:
            values |= kind.entries(self[kind])
        return _plain(values)

    def print(self, console: Console) -> None:
        """Print gradients by part and by term, the measurements, and the findings."""
        grid = table("Measured", ["what", "value"])
        for kind in self._shown:
            result = self[kind]
            for own in result.tables() if result else ():
                console.print(own)
            missing = [kind.absent if kind in self.results else Measurement.absent] * len(kind.labels)
            values = result.values(self.subject) if result else missing
            for label, value in zip(kind.labels, values, strict=True):
                grid.add_row(label.format(horizon=self.subject.horizon), value)
        console.print(grid)
        findings = self.findings
        console.print("Findings, the weightiest first" if findings else "nothing found", style="bold")
        for number, finding in enumerate(findings, start=1):
            console.print(f"{number}. {finding.kind}: {finding.seen}", markup=False)
            console.print(f"   {finding.means}", markup=False)
            console.print(f"   change: {finding.change}", markup=False)

    def figure(self, title: str) -> Figure:
        """A panel per measurement that has one."""
        drawn = [kind for kind in self._shown if kind.panel]
        columns = -(-len(drawn) // ROWS)
        figure = Figure(figsize=(4.67 * columns, 4.25 * ROWS), layout="constrained")
        figure.suptitle(title, fontsize=13)
        for place, kind in enumerate(drawn, start=1):
            axes = figure.add_subplot(ROWS, columns, place)
            axes.set(**dict(zip(("title", "xlabel", "ylabel"), kind.panel or (), strict=True)))
            axes.set_prop_cycle(color=(BLUE, RED))
            if (result := self[kind]) is not None:
                result.draw(axes, self.subject)
            axes.grid(alpha=0.25)
            axes.title.set_fontsize(10)
        return figure


def diagnose(
    model: Diagnosable,
    batches: Sequence[Batch],
    rule: str,
    carry: bool = True,
    gradient: str = "tbptt",
    curves: Callable[[], HorizonCurves] | None = None,
    cause: Cause | None = None,
) -> Diagnosis:
    """Measure everything.

    Args:
        model: in evaluation mode, on the CPU. Its parameters and their gradients are left as they are.
        batches: consecutive, from the beginning of a stream. With only one, lags beyond T are not measured.
        rule: its name.
        carry: whether training carries the state from batch to batch.
        gradient: the model's: where it is exact, no horizon is too short.
        curves: measures the open-loop errors of a trained model; None of a new one, which no baseline is held against.
        cause: what the losses of its training show.
    """
    subject = Subject(model, batches, rule, carry, gradient, curves, cause)
    finite = all(bool(p.isfinite().all()) for _, p in model.named_parameters() if p.requires_grad)
    kinds = MEASUREMENTS if finite else (Gradients,)
    return Diagnosis(subject, {kind: kind.measure(subject) for kind in kinds})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
