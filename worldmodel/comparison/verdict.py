"""From the runs of a comparison to its verdict: means over seeds, pairs, who wins, and what may not be said."""

import csv
import math
from dataclasses import asdict
from pathlib import Path

from worldmodel.comparison.contest import errors_by_seed, pairs_at, rank
from worldmodel.comparison.findings import Cell, Pair, Ranking, Trait, Verdict
from worldmodel.comparison.results import DIVERGED, LOOPS, Comparison, Loop, write_json
from worldmodel.comparison.statistics import Estimate, arithmetic, geometric, scaled
from worldmodel.comparison.summary import summarize
from worldmodel.durable import whole_file

__all__ = ["Cell", "Estimate", "Pair", "Ranking", "Trait", "Verdict", "judge", "write_results_csv", "write_verdict"]

MEASURED = ("norm_growth", "valid_time", "steps_per_second", "peak_memory_mb", "seconds")  # of a Result

METHOD = f"""\
Errors are squared errors divided by the observations' variance, on the same episodes for all: 1.0 is no better \
than predicting the mean. In open loop, the error of a horizon is that of this very step after the last observed \
frame; in closed loop, the mean over the steps after the horizon before it, up to this one. Regret is the error \
divided by the floor's on the same episodes: 1 cannot be beaten, but for chance in finite data.

Means over seeds of errors, which span decades, are geometric, and their 95% intervals are t-intervals of the \
logarithm; the state's growth, valid prediction time, speed, memory and seconds have arithmetic means. One seed has \
no interval. A run has diverged at a horizon if its error there is not finite or above {DIVERGED:g} variances; it is \
counted and left out of the mean. Where all of a variant's runs diverged, the mean is theirs.

Pairs of variants are compared seed by seed, on the seeds that both have and in which neither diverged: a \
two-sided t-test of log(error / error). If two variants diverged in different numbers of seeds, then an exact binomial \
test of these counts, over the runs of both, is made too, and of the two the smaller p counts, doubled (where there is \
nothing but counts, 3 of 3 runs against none are enough, 2 of 2 are not). But if the one that diverged less often has \
the larger errors where neither diverged, nothing is decided. Holm's correction over all pairs at that loop and \
horizon keeps the chance of any false difference there at 5% or below. A ratio's interval is of this ratio alone.

A winner diverged in no seed, has the lowest mean, and is better than every other variant, each in a test of its own \
at 5%, by 1% or more: to be better than all, it must pass all tests, and needs no correction (Berger 1982). Smaller \
gaps are of no use. Without a winner, the best are the one of the lowest mean and those that it does not beat so. Not \
told apart does not mean equal. The seeds set the weights, all else is the same: what is concluded holds for new \
seeds on these data, not for other data."""


def judge(comparison: Comparison) -> Verdict:
    """Means, pairs, rankings and their summary, of whatever has finished."""
    horizons = [
        horizon
        for horizon in comparison.plan["horizons"]
        if any(horizon in run.errors.get(loop, {}) for run in comparison.results for loop in LOOPS)
    ]
    places: list[tuple[Loop, int]] = [(loop, horizon) for loop in LOOPS for horizon in horizons]
    cells = [cell for place in places for cell in _cells(comparison, *place)]
    pairs = [pair for place in places for pair in pairs_at(comparison, *place)]
    rankings = []
    for place in places:
        there = rank(
            [c for c in cells if (c.loop, c.horizon) == place], [p for p in pairs if (p.loop, p.horizon) == place]
        )
        rankings += [there] if there else []
    traits = [trait for variant in comparison.variants for trait in _traits(comparison, variant)]
    verdict = Verdict(horizons, cells, pairs, rankings, traits, [], METHOD)
    return Verdict(**{**vars(verdict), "summary": summarize(verdict, comparison)})


def _cells(comparison: Comparison, loop: Loop, horizon: int) -> list[Cell]:
    floor = comparison.floor.errors.get(loop, {}).get(horizon) if comparison.floor else None
    cells = []
    for variant in comparison.variants:
        if errors := errors_by_seed(comparison, variant, loop, horizon):
            error = geometric(list(errors.values()), limit=DIVERGED)
            cells.append(Cell(variant, loop, horizon, error, scaled(error, 1 / floor) if floor else None))
    return cells


def _traits(comparison: Comparison, variant: str) -> list[Trait]:
    runs = comparison.of(variant)
    planned = sum(run["variant"] == variant for run in comparison.plan["runs"])
    counts = {
        "diverged": sum(run.diverged for run in runs),
        "failed": sum(failure.variant == variant for failure in comparison.failures),
        "finished": len(runs),
    }
    return [
        *(Trait(variant, name, arithmetic([getattr(run, name) for run in runs])) for name in MEASURED),
        *(Trait(variant, name, Estimate(count, math.nan, math.nan, planned)) for name, count in counts.items()),
    ]


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Write `verdict.json`, whole or not at all."""
    write_json(path, asdict(verdict))


def write_results_csv(comparison: Comparison, path: Path) -> None:
    """Write every run's errors: a row of variant, its axes, seed, loop, horizon, error, regret (empty: no floor)."""
    axes = list(dict.fromkeys(axis for run in comparison.plan["runs"] for axis in run["axes"]))
    floor = comparison.floor.errors if comparison.floor else {}
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", *axes, "seed", "loop", "horizon", "error", "regret"])
        for run in (run for variant in comparison.variants for run in comparison.of(variant)):
            of_run = [run.variant, *(run.axes.get(axis, "") for axis in axes), run.seed]
            for loop in LOOPS:
                for horizon, error in sorted(run.errors.get(loop, {}).items()):
                    best = floor.get(loop, {}).get(horizon)
                    writer.writerow([*of_run, loop, horizon, error, error / best if best else ""])
