"""Where a model is no better than a baseline."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from worldmodel.evaluation.curves import HorizonCurves

NAMES = {"copy_last": "copying the last observation", "mean": "the mean", "linear": "a linear autoregression"}
BRIDGED = 0.05  # of the horizon: shorter stretches in which the model is ahead again are passed over in words
MOST = 3  # stretches that are named


@dataclass(frozen=True)
class Shortfall:
    """The horizons at which a model's open-loop error is not below a baseline's."""

    baseline: str  # in words
    horizons: np.ndarray  # (N,) at least one, ascending
    longest: int  # horizon that was measured
    worst: int  # horizon at which the model's error is the largest multiple of the baseline's
    error: float  # of the model, there
    against: float  # of the baseline, there

    def __str__(self) -> str:
        """`a linear autoregression up to 16 steps ahead (0.31 against 0.12 at 4)`."""
        where = f" at {self.worst}" if len(self.horizons) > 1 else ""
        return f"{self.baseline} {self._where()} ({self.error:.3g} against {self.against:.3g}{where})"

    def _where(self) -> str:
        parts = [self._stretch(first, last) for first, last in self._stretches()]
        if len(parts) > MOST:
            first, last = self.horizons[0], self.horizons[-1]
            return f"at {len(self.horizons)} of {self.longest} horizons, the first {first}, the last {last} steps ahead"
        return " and ".join(parts)

    def _stretch(self, first: int, last: int) -> str:
        if first == last:
            return f"at {first} step{'s' * (first > 1)}"
        if first == 1:
            return "at every horizon" if last == self.longest else f"up to {last} steps ahead"
        return f"from {first} steps on" if last == self.longest else f"from {first} to {last} steps ahead"

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """First and last horizon of each."""
        ends = np.flatnonzero(np.diff(self.horizons) > np.maximum(1, BRIDGED * self.horizons[1:]))
        for some in np.split(self.horizons, ends + 1):
            yield int(some[0]), int(some[-1])


def shortfalls(curves: HorizonCurves) -> list[Shortfall]:
    """As few baselines as show every horizon at which the model is not ahead of all; the most telling first."""
    behind = {name: ~(curves.nmse < errors) & ~np.isnan(errors) for name, errors in curves.baselines.items()}
    lost = {name: np.flatnonzero(at) for name, at in behind.items()}
    found, shown = [], np.zeros(0, int)
    while new := max(((len(np.setdiff1d(at, shown)), name) for name, at in lost.items()), default=None):
        number, name = new
        if not number:
            break
        found.append(_shortfall(curves, name, at := lost.pop(name)))
        shown = np.union1d(shown, at)
    return found


def _shortfall(curves: HorizonCurves, name: str, lost: np.ndarray) -> Shortfall:
    errors = curves.baselines[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.nan_to_num(curves.nmse[lost] / errors[lost], nan=1.0, posinf=np.inf)
    worst = int(lost[times.argmax()])
    there = float(curves.nmse[worst]), float(errors[worst])
    return Shortfall(NAMES[name], curves.horizon[lost], int(curves.horizon[-1]), int(curves.horizon[worst]), *there)


def listed(found: list[Shortfall]) -> str:
    """In one line, what follows `no better than`: `the mean from 170 steps on (1.41 against 0.959 at 320)`."""
    return "; than ".join(map(str, found))


def share_within(found: list[Shortfall], steps: int) -> float:
    """The share of the trained horizons, 1 to T = `steps`, at which a baseline is ahead."""
    lost = {int(horizon) for each in found for horizon in each.horizons if horizon <= steps}
    return len(lost) / min(steps, max((each.longest for each in found), default=steps))
