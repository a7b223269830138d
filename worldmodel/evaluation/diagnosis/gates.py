"""How often gates are shut or wide open, and which never move."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from worldmodel.evaluation.diagnosis.measurement import Finding, Measurement, Subject

LOW, HIGH = 0.01, 0.99  # the sigmoid's slope there is a twenty-fifth of its largest
ALWAYS = 0.999  # of the steps: a unit whose gate is saturated on one side in so many of them is stuck
BINS = 20
SATURATED = 0.9  # of all gate values
STUCK = 0.5  # of all units: healthy training leaves a few


@dataclass(frozen=True)
class Gates(Measurement):
    """Of the share of each entry that a step overwrites."""

    shut: float  # share of values below LOW
    open: float  # share of values above HIGH
    stuck_shut: float  # share of units that are (almost) always shut: they are never written
    stuck_open: float  # share of units that are (almost) always open: they remember nothing of their own
    mean: float
    histogram: list[float]  # shares of BINS equal parts of [0, 1]

    key = "gates"
    labels = ("gates",)
    absent = "the rule has none"
    panel = "gates: the rule has none", "gate: the share that is overwritten", "share of values"

    @classmethod
    def measure(cls, subject: Subject) -> "Gates | None":
        with torch.no_grad():
            _, h, _ = subject.model.losses(subject.stretch)
            return gates(subject.model.gate(subject.stretch, h), subject.stretch["valid"])

    @property
    def saturated(self) -> float:
        return self.shut + self.open

    @property
    def stuck(self) -> float:
        return self.stuck_shut + self.stuck_open

    def values(self, subject: Subject) -> tuple[str]:
        return (f"mean {self.mean:.3g}; {self.saturated:.1%} saturated, {self.stuck:.1%} of the units always",)

    def draw(self, axes: Axes, subject: Subject) -> None:
        axes.set_title("gates")
        axes.bar((np.arange(BINS) + 0.5) / BINS, self.histogram, 1 / BINS)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if self.stuck > STUCK or self.saturated > SATURATED:
            shut = self.shut >= self.open
            yield Finding(
                "saturated gate",
                55,
                f"{self.saturated:.0%} of the gate's values are below {LOW} or above {HIGH},"
                f" {self.stuck:.0%} of its units (almost) always",
                "a saturated gate learns nothing; shut, it never writes" if shut else "open, it keeps nothing",
                "--model.gate_bias nearer to 0 (default -1); with trained weights a higher --model.weight_decay",
            )


def gates(values: Tensor | None, valid: Tensor) -> Gates | None:
    """Of gate values (B, T, D) at valid steps (B, T); None without a gate, or where none is finite."""
    if values is None:
        return None
    rows = values[valid].double()
    rows = rows[rows.isfinite().all(dim=-1)]
    if not len(rows):
        return None
    sides = (rows < LOW).double(), (rows > HIGH).double()
    shut, wide = (float(side.mean()) for side in sides)
    low, high = (float((side.mean(dim=0) >= ALWAYS).double().mean()) for side in sides)
    histogram = torch.histc(rows.flatten(), BINS, 0.0, 1.0) / rows.numel()
    return Gates(shut, wide, low, high, float(rows.mean()), histogram.tolist())
