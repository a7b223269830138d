"""Pictures for notebooks: of open-loop predictions, and of what a fit logged."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from worldmodel.errors import UserError, nearest
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.figures import rollout_figure, save

AXES = ("step", "epoch")  # columns that are no metrics
USUAL = ("train/loss", "val/loss")


@dataclass(frozen=True)
class Rollout:
    """Predictions of chosen episodes from actions alone, and their errors."""

    curves: HorizonCurves
    steps: int  # T, the trained horizon
    title: str
    notes: list[str]  # what is shorter than asked for, in words

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """The errors (H,) 1 .. H steps ahead of the model and the baselines; 1.0 is predicting the mean."""
        return {"model": self.curves.nmse, **self.curves.baselines}


@dataclass(frozen=True)
class Picture:
    """A figure of Matplotlib that notebooks show."""

    figure: Figure

    def save(self, path: Path | str) -> None:
        """Write it as a PNG."""
        save(self.figure, Path(path))

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def plot(what: Rollout | Mapping[str, np.ndarray], *names: str) -> Picture:
    """Draw a rollout (`model.rollout(...)`), or metrics over the steps of a fit (`read_metrics(RUN)`).

    Args:
        what: to draw.
        names: of metrics; none: the losses of training and validation.

    Raises:
        UserError: for a metric that was not logged.
    """
    if isinstance(what, Rollout):
        return Picture(rollout_figure(what.curves, what.steps, what.title))
    logged = [name for name in what if name not in AXES]
    for name in names:
        if name not in logged:
            raise UserError(f"there is no metric {name}: {nearest(name, logged)}")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in names or [name for name in USUAL if name in what]:
        there = np.isfinite(what[name])
        axes.plot(what["step"][there], what[name][there], marker=".", label=name)
    axes.set(xlabel="optimizer step", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    return Picture(figure)
