"""The verdict on a comparison's runs: means over seeds, pairs, rankings and their summary."""

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from worldmodel.comparison.contest import BySeed, Cell, Score, Trait, Verdict, errors_at, pairs_at, rank, scores_at
from worldmodel.comparison.results import DIVERGED, LOOPS, Comparison, Loop, ScoresAt
from worldmodel.comparison.standings import standings
from worldmodel.comparison.summary import summarize
from worldmodel.durable import whole_file, write_json
from worldmodel.statistics import Estimate, arithmetic, geometric, scaled, within

GEOMETRIC = ("crps", "nmse")  # beginnings of the names of scores
SCORES = ("crps", "crps_point", "nll", "coverage90", "conformal90", "sharpness90", "crps_regret", "nll_regret")
POSITIVE = ("steps_per_second", "peak_memory_mb", "seconds")  # have geometric means too
LIMITS = {
    "valid_time": (0.0, math.inf),
    "coverage90": (0.0, 1.0),
    "conformal90": (0.0, 1.0),
    "sharpness90": (0.0, math.inf),
}
MEASURED = ("norm_growth", "valid_time", "steps_per_second", "peak_memory_mb", "seconds")  # of a Result

METHOD = f"""\
Errors are squared errors divided by the variance of the observations, on the same episodes for all variants: 1.0 is \
no better than predicting the mean. In open loop, the error at a horizon is the one at exactly this step after the \
last observed frame; in closed loop, it is the mean over the steps after the previous horizon, up to this one. Regret \
is the error divided by the floor's on the same episodes: values below 1 are chance in finite data.

Errors span decades, so their means over seeds are geometric, with 95% t-intervals of the logarithm; so are \
those of speed, memory and seconds; growth of the state and valid prediction time have arithmetic means, and no \
interval passes zero where the quantity cannot. One seed has no interval. A run has \
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

A distribution is held against what happened in open loop, on two rollouts of each episode. Its continuous ranked \
probability score (CRPS, in deviations of the observations) is compared as errors are; its means are geometric, as are \
those of ratios to the floor. Shares, widths and likelihoods have arithmetic means. Intervals are corrected on the \
validation episodes.

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
    floors = comparison.floor.errors if comparison.floor else {}
    cells, pairs, rankings = [], [], []
    for loop in LOOPS:
        for horizon in horizons:
            errors = errors_at(comparison, loop, horizon)
            cells += (here := _cells(errors, loop, horizon, floors.get(loop, {}).get(horizon)))
            pairs += (pairs_here := pairs_at(errors, loop, horizon))
            rankings += [ranking] if (ranking := rank(here, pairs_here)) else []
    crps_pairs, crps_rankings = [], []
    for horizon in horizons:
        crps = scores_at(comparison, "crps", horizon)
        crps_pairs += (pairs_here := pairs_at(crps, "open", horizon))
        crps_rankings += [ranking] if (ranking := rank(_cells(crps, "open", horizon), pairs_here)) else []
    traits = [trait for variant in comparison.variants for trait in _traits(comparison, variant)]
    of_distributions = _scores(comparison, horizons), crps_pairs, crps_rankings
    standing = standings(comparison, cells)
    verdict = Verdict(horizons, cells, pairs, rankings, traits, standing, *of_distributions, [], METHOD)
    return replace(verdict, summary=summarize(verdict, comparison))


def _cells(errors: dict[str, BySeed], loop: Loop, horizon: int, floor: float | None = None) -> list[Cell]:
    means = {variant: geometric(list(of.values()), limit=DIVERGED) for variant, of in errors.items()}
    return [Cell(v, loop, horizon, mean, scaled(mean, 1 / floor) if floor else None) for v, mean in means.items()]


def _scores(comparison: Comparison, horizons: list[int]) -> list[Score]:
    names = list(dict.fromkeys(name for run in comparison.results for name in run.scores))
    found = []
    for name in names:
        mean = _mean_of(name)
        for horizon in horizons:
            at = scores_at(comparison, name, horizon)
            found += [Score(variant, name, horizon, mean(list(of.values()))) for variant, of in at.items()]
    return found


def _traits(comparison: Comparison, variant: str) -> list[Trait]:
    runs = comparison.of(variant)
    planned = sum(run["variant"] == variant for run in comparison.design["runs"])
    counts = {
        "diverged": sum(run.diverged for run in runs),
        "failed": sum(failure.variant == variant for failure in comparison.failures),
        "finished": len(runs),
    }
    return [
        *(Trait(variant, name, _mean_of(name)([getattr(run, name) for run in runs])) for name in MEASURED),
        *(Trait(variant, name, Estimate(count, math.nan, math.nan, planned)) for name, count in counts.items()),
    ]


def _mean_of(name: str) -> Callable[[list[float]], Estimate]:
    """How a trait or a score is averaged: an interval ends where the quantity does."""
    if name.startswith(GEOMETRIC) or name in POSITIVE:
        return partial(geometric, limit=DIVERGED) if name.startswith(GEOMETRIC) else geometric
    if name in LIMITS:
        return lambda values: within(arithmetic(values), *LIMITS[name])
    return arithmetic


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Write `verdict.json`, whole or not at all."""
    write_json(path, asdict(verdict))


def write_results_csv(comparison: Comparison, path: Path) -> None:
    """Write a row for every error of every run, then of every reference: variant, its axes, seed, loop, horizon, error,
    regret (empty without a floor), and where a run has a distribution SCORES in its open-loop rows. References have
    neither axes nor seed."""
    axes = list(dict.fromkeys(axis for values in comparison.axes.values() for axis in values))
    floor = comparison.floor.errors if comparison.floor else {}
    runs = [run for variant in comparison.variants for run in comparison.of(variant)]
    rows = [([r.variant, *(r.axes.get(axis, "") for axis in axes), r.seed], r.errors, r.scores) for r in runs]
    rows += [([of.title, *[""] * (len(axes) + 1)], of.errors, ScoresAt()) for of in comparison.references]
    columns = [name for name in SCORES if any(name in run.scores for run in runs)]
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", *axes, "seed", "loop", "horizon", "error", "regret", *columns])
        for names, errors, scores in rows:
            for loop in LOOPS:
                for horizon, error in sorted(errors.get(loop, {}).items()):
                    best = floor.get(loop, {}).get(horizon)
                    own = [scores.get(name, {}).get(horizon, "") if loop == "open" else "" for name in columns]
                    writer.writerow([*names, loop, horizon, error, error / best if best else "", *own])
