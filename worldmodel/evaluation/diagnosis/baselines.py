"""The open-loop error of a trained model beside the baselines', and why it is no better than they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.diagnosis.measurement import RED, Finding, Measurement, Subject
from worldmodel.evaluation.shortfall import listed, share_within, shortfalls

MOST = 0.5  # of the trained horizons: a model that is worse at as many has learned next to nothing
UNKNOWN = "a prediction that needs no training is as good; the losses of the training do not show why"
STYLES = {"copy_last": ":", "mean": "--", "linear": "-."}


@dataclass(frozen=True)
class Baselines(Measurement):
    """Of the validation episodes, as a fit measures it at its end."""

    curves: HorizonCurves

    key = "open_loop"
    labels = ("open-loop error / variance",)
    panel = "open-loop error", "horizon (steps)", "error / variance"
    optional = True

    @classmethod
    def measure(cls, subject: Subject) -> "Baselines | None":
        """None of a new model, which has learned nothing yet."""
        return None if subject.curves is None else cls(subject.curves())

    def values(self, subject: Subject) -> tuple[str]:
        horizon = min(subject.horizon, len(self.curves.horizon))
        at = {name.replace("_", " "): values[horizon - 1] for name, values in self.curves.baselines.items()}
        beside = ", ".join(f"{name} {value:.3g}" for name, value in at.items())
        return (f"{self.curves.nmse[horizon - 1]:.3g} at {horizon} steps ({beside})",)

    def draw(self, axes: Axes, subject: Subject) -> None:
        axes.axvline(subject.horizon, color="0.2", linewidth=0.8, linestyle="--")
        axes.plot(self.curves.horizon, _finite(self.curves.nmse), label="model")
        for name, values in self.curves.baselines.items():
            style = {"color": RED, "linestyle": STYLES[name], "linewidth": 1}
            axes.plot(self.curves.horizon, _finite(values), label=name.replace("_", " "), **style)
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize=8)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if not (found := shortfalls(self.curves)):
            return
        share, cause = share_within(found, subject.horizon), subject.cause
        weight = 95 if share >= MOST else 60 if share else 35
        means, change = UNKNOWN, "see the other findings; a longer training, another --model.learning_rate, more data"
        if not share:
            means = f"errors add up beyond the trained horizon, T = {subject.horizon}"
            change = "a longer --data.steps, a higher --model.open_loop_steps"
        elif cause is not None:
            means, change = f"likely, {cause.what}: {cause.seen}", cause.change
        yield Finding("no better than a baseline", weight, listed(found), means, change)

    @classmethod
    def entries(cls, result: "Measurement | None") -> dict[str, Any]:
        if not isinstance(result, Baselines):
            return {cls.key: None}
        curves = {"nmse": result.curves.nmse, **result.curves.baselines}
        return {cls.key: {name: values.tolist() for name, values in curves.items()}}


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
