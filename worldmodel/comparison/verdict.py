"""The verdict on a comparison's runs: means over seeds, pairs, rankings and their summary."""

import csv
import math
from dataclasses import asdict, replace
from pathlib import Path

from worldmodel.comparison.contest import Cell, Trait, Verdict, errors_by_seed, pairs_at, rank
from worldmodel.comparison.results import DIVERGED, LOOPS, Comparison, Loop
from worldmodel.comparison.standings import standings
from worldmodel.comparison.summary import summarize
from worldmodel.durable import whole_file, write_json
from worldmodel.statistics import Estimate, arithmetic, geometric, scaled

MEASURED = ("norm_growth", "valid_time", "steps_per_second", "peak_memory_mb", "seconds")  # of a Result

METHOD = f"""\
Errors are squared errors divided by the variance of the observations, on the same episodes for all variants: 1.0 is \
no better than predicting the mean. In open loop, the error at a horizon is the one at exactly this step after the \
last observed frame; in closed loop, it is the mean over the steps after the previous horizon, up to this one. Regret \
is the error divided by the floor's on the same episodes: values below 1 are chance in finite data.

Errors span decades, so their means over seeds are geometric, with 95% t-intervals of the logarithm; growth of the \
state, valid prediction time, speed, memory and seconds have arithmetic means. One seed has no interval. A run has \
diverged at a horizon if its error there is not finite or above {DIVERGED:g} variances; it is counted, and left out of \
the mean. If all runs of a variant diverged, the mean is over them.

Pairs of variants are compared seed by seed, on the seeds that both have and in which neither diverged, by a two-sided \
t-test of log(error / error). If two variants diverged in different numbers of seeds, an exact binomial test of these \
counts, over the runs of both, is added, and the smaller p of the two counts, doubled (with nothing but counts, 3 of 3 \
runs against none are enough, 2 of 2 are not). But if the variant that diverged less often has the larger errors where \
neither diverged, nothing is decided. Holm's correction over all pairs at that loop and horizon keeps the chance of \
any false difference there at 5% or below. The interval of a ratio is for this ratio alone.

A winner diverged in no seed, has the lowest mean, and is better than every other variant by 1% or more, each in a \
test of its own at 5%: it must pass all tests, so they need no correction (Berger 1982). Smaller gaps do not matter in \
practice. Without a winner, the best are the variant with the lowest mean and those that it does not beat. Not told \
apart does not mean equal.

A baseline has no seeds. It is ahead where the mean of a variant is not below its error, or a run of the variant has \
diverged; surely so, where its error lies below the variant's interval. Seeds change only the weights: conclusions \
hold for new seeds on these data, not for other data."""


def judge(comparison: Comparison) -> Verdict:
    """Means, pairs, rankings and their summary, of all finished runs."""
    horizons = [
        horizon
        for horizon in comparison.design["horizons"]
        if any(horizon in run.errors.get(loop, {}) for run in comparison.results for loop in LOOPS)
    ]
    cells, pairs, rankings = [], [], []
    for loop in LOOPS:
        for horizon in horizons:
            cells += (cells_here := _cells(comparison, loop, horizon))
            pairs += (pairs_here := pairs_at(comparison, loop, horizon))
            rankings += [ranking] if (ranking := rank(cells_here, pairs_here)) else []
    traits = [trait for variant in comparison.variants for trait in _traits(comparison, variant)]
    verdict = Verdict(horizons, cells, pairs, rankings, traits, standings(comparison, cells), [], METHOD)
    return replace(verdict, summary=summarize(verdict, comparison))


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
    planned = sum(run["variant"] == variant for run in comparison.design["runs"])
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
    """Write a row for every error of every run, then of every reference: variant, its axes, seed, loop, horizon, error,
    regret (empty without a floor). References have neither axes nor seed."""
    axes = list(dict.fromkeys(axis for values in comparison.axes.values() for axis in values))
    floor = comparison.floor.errors if comparison.floor else {}
    runs = [run for variant in comparison.variants for run in comparison.of(variant)]
    rows = [([run.variant, *(run.axes.get(axis, "") for axis in axes), run.seed], run.errors) for run in runs]
    rows += [([of.title, *[""] * (len(axes) + 1)], of.errors) for of in comparison.references]
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", *axes, "seed", "loop", "horizon", "error", "regret"])
        for names, errors in rows:
            for loop in LOOPS:
                for horizon, error in sorted(errors.get(loop, {}).items()):
                    best = floor.get(loop, {}).get(horizon)
                    writer.writerow([*names, loop, horizon, error, error / best if best else ""])
