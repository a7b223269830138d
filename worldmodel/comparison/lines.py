"""Curves of many steps and several seeds, as few points with bands: what the report draws."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from worldmodel.comparison.results import DIVERGED, Comparison, Curve, Curves, Loop
from worldmodel.comparison.statistics import TINY, geometric

POINTS = 120  # of a line
Points = tuple[np.ndarray, np.ndarray]  # steps (N,), values (N,)


@dataclass(frozen=True)
class Band:
    """A value along the steps, over seeds: geometric mean and 95% t-interval of those that have not diverged there."""

    step: np.ndarray  # (N,)
    middle: np.ndarray  # (N,) infinite where all have
    low: np.ndarray  # (N,) NaN where fewer than two are left
    high: np.ndarray  # (N,)
    values: np.ndarray  # (S, N) of each seed
    gone: np.ndarray  # (S, N) which have diverged there

    @property
    def seeds(self) -> np.ndarray:
        """(N,) how many are left."""
        return (~self.gone).sum(axis=0)


def bands(
    curves: dict[str, list[Curves]], loop: Loop, sample: Callable[[Curve], Points], limit: float = DIVERGED
) -> dict[str, Band]:
    """Variant -> band, of those that have a curve of this loop.

    Args:
        curves: of the runs.
        loop: closed or open.
        sample: the points of one curve, see `thinned`.
        limit: above it, a seed has diverged.
    """
    found = {}
    for variant, runs in curves.items():
        lines = [sample(run[loop]) for run in runs if loop in run and len(run[loop].step)]
        if lines:
            step = min((step for step, _ in lines), key=len)  # a seed's curve is as long as any other's
            found[variant] = band(step, np.stack([values[: len(step)] for _, values in lines]), limit)
    return found


def band(step: np.ndarray, values: np.ndarray, limit: float = DIVERGED) -> Band:
    """Geometric mean and interval at each step, over the seeds whose value is at most `limit` there.

    Args:
        step: (N,).
        values: (S, N) of S seeds; at least 0, may be infinite or NaN.
        limit: above it, a seed has diverged.
    """
    found = [geometric(at, limit) for at in values.T.tolist()]
    middle = np.array([of.mean if of.n else np.inf for of in found])
    low, high = np.array([of.low for of in found]), np.array([of.high for of in found])
    return Band(step, middle, low, high, np.where(np.isnan(values), np.inf, values), ~(values <= limit))


def thinned(curve: Curve, values: np.ndarray, loop: Loop, horizons: Iterable[int]) -> Points:
    """About POINTS points of a curve's values, log-spaced and at the horizons.

    In closed loop a point is the mean since the point before it, as a horizon's error is; in open loop the value there.
    """
    count = len(values)
    if not count:
        return curve.step, values
    spaced = np.geomspace(1, count, POINTS).round().astype(int)
    ends = np.unique([*spaced, *(horizon for horizon in horizons if horizon <= count)])
    if loop == "open":
        return ends, values[ends - 1]
    begins = np.concatenate([[0], ends[:-1]])
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.add.reduceat(values * curve.count, begins)
        return ends, sums / np.maximum(np.add.reduceat(curve.count, begins), 1)


def over_floor(found: Band, floor: Points) -> Band:
    """A band of errors divided by the floor's at the same steps; as long as the floor is, and diverged where it was."""
    known = found.step <= floor[0][-1]
    below = np.maximum(np.interp(found.step[known], *floor), TINY)
    middle, low, high, values = (
        part[..., known] / below for part in (found.middle, found.low, found.high, found.values)
    )
    return Band(found.step[known], middle, low, high, values, found.gone[:, known])


def stateful(runs: Iterable[Curves], loop: Loop) -> list[Curves]:
    """Those that have a hidden state in this loop."""
    return [run for run in runs if loop in run and not np.isnan(run[loop].hidden_norm[:1]).any()]


def relative_norm(curve: Curve, steps: int) -> np.ndarray:
    """||h|| / its value at step `steps`, (N,): states of any width can be compared. Infinite where it overflows."""
    norm = np.where(np.isfinite(curve.hidden_norm), curve.hidden_norm, np.inf)
    there = norm[min(steps, len(norm)) - 1]
    with np.errstate(over="ignore"):
        return norm / max(there, TINY) if np.isfinite(there) else np.full(len(norm), np.inf)


def counts(comparison: Comparison, loop: Loop) -> dict[int, int]:
    """Horizon -> how many rollouts (open loop) or episodes (closed loop) reach it, the same for all variants."""
    curves = [reference.curves[loop] for reference in comparison.references if loop in reference.curves]
    count = curves[0].count if curves else np.zeros(0)
    return {horizon: int(count[horizon - 1]) for horizon in comparison.plan["horizons"] if horizon <= len(count)}
