"""Curves of many steps and several seeds, as few points with bands: what the report draws."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from worldmodel.comparison.results import DIVERGED, Comparison, Curve, Curves, Loop, read_curves, run_folder

POINTS = 120  # of a line
TINY = float(np.finfo(float).tiny)  # an error of exactly zero counts as this, so that it has a logarithm
Points = tuple[np.ndarray, np.ndarray]  # steps (N,), values (N,)


@dataclass(frozen=True)
class Band:
    """A value along the steps, over seeds: geometric mean and 95% t-interval of those that have not diverged there."""

    step: np.ndarray  # (N,)
    middle: np.ndarray  # (N,) infinite where all have
    low: np.ndarray  # (N,) NaN where fewer than two are left
    high: np.ndarray  # (N,)
    seeds: np.ndarray  # (N,) how many are left
    values: np.ndarray  # (S, N) of each seed


def curves_of(comparison: Comparison) -> dict[str, list[Curves]]:
    """Variant -> the curves of its finished runs, by seed; without runs whose file is gone."""
    slugs = {(run["variant"], run["seed"]): run["slug"] for run in comparison.plan["runs"]}
    found: dict[str, list[Curves]] = {}
    for variant in comparison.variants:
        for run in comparison.of(variant):
            path = run_folder(comparison.folder, slugs[variant, run.seed], run.seed) / "curves.csv"
            if path.is_file():
                found.setdefault(variant, []).append(read_curves(path))
    return found


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
    there = values <= limit  # NaN is not
    seeds = there.sum(axis=0)
    logs = np.log(np.where(there, np.maximum(values, TINY), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(seeds > 0, logs.sum(axis=0) / seeds, np.inf)
        squares = np.where(there, np.square(logs - mean), 0).sum(axis=0)
        half = stats.t.ppf(0.975, seeds - 1) * np.sqrt(squares / (seeds - 1) / seeds)
        half = np.where(seeds > 1, half, np.nan)
        return Band(step, np.exp(mean), np.exp(mean - half), np.exp(mean + half), seeds, values)


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


def over_floor(points: Points, floor: Points) -> Points:
    """Values divided by the floor's at the same steps; as long as the floor is."""
    step, values = points
    known = step <= floor[0][-1]
    return step[known], values[known] / np.maximum(np.interp(step[known], *floor), TINY)
