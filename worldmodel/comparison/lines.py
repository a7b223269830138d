"""The lines of the report's figures: curves of many steps and several seeds, as few points with bands."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from worldmodel.comparison.results import DIVERGED, Comparison, Curve, Curves, Loop
from worldmodel.statistics import TINY, geometric

POINTS = 120  # of a line
Points = tuple[np.ndarray, np.ndarray]  # steps (N,), values (N,)


@dataclass(frozen=True)
class Band:
    """Values along the steps: geometric mean and 95% t-interval over the seeds that have not diverged there."""

    step: np.ndarray  # (N,)
    middle: np.ndarray  # (N,) infinite where all have diverged
    low: np.ndarray  # (N,) NaN where fewer than two seeds are left
    high: np.ndarray  # (N,)
    values: np.ndarray  # (S, N) of each seed
    gone: np.ndarray  # (S, N) whether a seed has diverged there

    @property
    def seeds(self) -> np.ndarray:
        """(N,) number of seeds that are left."""
        return (~self.gone).sum(axis=0)


def bands(
    curves: dict[str, list[Curves]], loop: Loop, sample: Callable[[Curve], Points], limit: float = DIVERGED
) -> dict[str, Band]:
    """Variant -> band, of the variants with curves of this loop.

    Args:
        curves: variant -> those of its runs.
        loop: closed or open.
        sample: gives the points of one curve, see `thinned`.
        limit: a seed has diverged above it.
    """
    by_variant = {}
    for variant, runs in curves.items():
        lines = [sample(run[loop]) for run in runs if loop in run and len(run[loop].step)]
        if lines:
            step = min((step for step, _ in lines), key=len)  # curves of all seeds should have the same length
            by_variant[variant] = band(step, np.stack([values[: len(step)] for _, values in lines]), limit)
    return by_variant


def band(step: np.ndarray, values: np.ndarray, limit: float = DIVERGED) -> Band:
    """Geometric mean and interval at each step, over the seeds whose value is at most `limit` there.

    Args:
        step: (N,).
        values: (S, N) of S seeds; at least 0, may be infinite or NaN.
        limit: a seed has diverged above it.
    """
    estimates = [geometric(at, limit) for at in values.T.tolist()]
    middle = np.array([of.mean if of.n else np.inf for of in estimates])
    low, high = np.array([of.low for of in estimates]), np.array([of.high for of in estimates])
    return Band(step, middle, low, high, np.where(np.isnan(values), np.inf, values), ~(values <= limit))


def thinned(curve: Curve, values: np.ndarray, loop: Loop, horizons: Iterable[int]) -> Points:
    """About POINTS points of a curve's values, log-spaced, and at the horizons.

    Like a horizon's error, a point is the value there in open loop, and the mean since the previous point in closed
    loop.
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


def over_floor(errors: Band, floor: Points) -> Band:
    """A band of errors divided by the floor's at the same steps, as far as the floor reaches."""
    known = errors.step <= floor[0][-1]
    below = np.maximum(np.interp(errors.step[known], *floor), TINY)
    parts = {name: getattr(errors, name)[..., known] / below for name in ("middle", "low", "high", "values")}
    return Band(step=errors.step[known], gone=errors.gone[:, known], **parts)


def stateful(runs: Iterable[Curves], loop: Loop) -> list[Curves]:
    """The runs that have a hidden state in this loop."""
    return [run for run in runs if loop in run and not np.isnan(run[loop].hidden_norm[:1]).any()]


def relative_norm(curve: Curve, steps: int) -> np.ndarray:
    """(N,) ||h|| / its value at step `steps`, comparable across widths; infinite where it overflows."""
    norm = np.where(np.isfinite(curve.hidden_norm), curve.hidden_norm, np.inf)
    trained = norm[min(steps, len(norm)) - 1]
    with np.errstate(over="ignore"):
        return norm / max(trained, TINY) if np.isfinite(trained) else np.full(len(norm), np.inf)


def counts(comparison: Comparison, loop: Loop) -> dict[int, int]:
    """Horizon -> number of rollouts (open loop) or episodes (closed loop) that reach it, the same for all variants."""
    curves = [reference.curves[loop] for reference in comparison.references if loop in reference.curves]
    count = curves[0].count if curves else np.zeros(0)
    return {horizon: int(count[horizon - 1]) for horizon in comparison.design["horizons"] if horizon <= len(count)}
