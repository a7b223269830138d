"""Variants against each other: errors over seeds, every pair at a horizon, and who wins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from worldmodel.comparison.results import Comparison, Loop, is_diverged
from worldmodel.statistics import ALPHA, Estimate, PairedTest, count_test, exp, holm, log_ratios, paired_test

PRACTICAL = 0.01  # relative: smaller gaps between two errors do not matter in practice
NO_DIFFERENCE = "no practical difference"
ONE_SEED = "one seed"
BySeed = dict[int, float]


@dataclass(frozen=True)
class Cell:
    """A variant's error at a horizon, over its seeds."""

    variant: str
    loop: Loop
    horizon: int  # steps
    error: Estimate  # / variance; geometric
    regret: Estimate | None  # error / the floor's error, where there is a floor

    @property
    def runs(self) -> int:
        """How many reached the horizon."""
        return self.error.n + self.error.diverged


@dataclass(frozen=True)
class Pair:
    """Two variants against each other, seed by seed."""

    loop: Loop
    horizon: int
    a: str
    b: str
    ratio: float  # error_a / error_b, geometric mean over the seeds in which neither diverged
    low: float  # its 95% interval, of this one ratio
    high: float
    p: float  # corrected, see Verdict.method; NaN: the seeds allow no test
    better: str | None  # a, b, or None: not told apart
    alone: str | None  # the same, without the correction for other pairs


@dataclass(frozen=True)
class Ranking:
    """Who wins at a horizon."""

    loop: Loop
    horizon: int
    winner: str | None
    best: list[str]  # the winner; without one, the lowest and those that it does not beat; none of them diverged
    statement: str


@dataclass(frozen=True)
class Trait:
    """A property of a variant that has no horizon; `diverged`, `failed` and `finished` are counts of runs."""

    variant: str
    name: str
    estimate: Estimate


@dataclass(frozen=True)
class Score:
    """What a variant's distribution scores in open loop, over its seeds."""

    variant: str
    name: str  # of Result.scores
    horizon: int  # steps
    estimate: Estimate  # geometric for CRPS, errors and their ratios; else arithmetic


@dataclass(frozen=True)
class Standing:
    """A variant's error at a horizon beside the baselines', on the same episodes."""

    variant: str
    loop: Loop
    horizon: int  # steps
    error: Estimate  # of the variant; geometric
    baselines: dict[str, float]  # name -> error
    ahead: list[str]  # baselines with an error at or below the variant's mean, or all, if a run diverged; best first
    sure: list[str]  # of these, those below the variant's interval over seeds


@dataclass(frozen=True)
class Verdict:
    """What the runs of a comparison show, and what they do not."""

    horizons: list[int]  # steps; those that at least one run reached
    cells: list[Cell]
    pairs: list[Pair]
    rankings: list[Ranking]
    traits: list[Trait]
    baselines: list[Standing]  # of every cell; empty if no baseline was measured
    scores: list[Score]  # of the variants with a distribution
    crps_pairs: list[Pair]  # of these, in open loop, by CRPS in place of the error
    crps_rankings: list[Ranking]
    summary: list[str]  # sentences, the most important first
    method: str

    def cell(self, variant: str, loop: Loop, horizon: int) -> Cell | None:
        """The variant's cell; None if no run of it reached this horizon."""
        same = (c for c in self.cells if (c.variant, c.loop, c.horizon) == (variant, loop, horizon))
        return next(same, None)

    def ranking(self, loop: Loop, horizon: int) -> Ranking | None:
        """The ranking at this horizon, if anything was measured there."""
        return next((r for r in self.rankings if (r.loop, r.horizon) == (loop, horizon)), None)

    def score(self, variant: str, name: str, horizon: int) -> Estimate | None:
        """The estimate of a score."""
        same = (s.estimate for s in self.scores if (s.variant, s.name, s.horizon) == (variant, name, horizon))
        return next(same, None)

    def crps_ranking(self, horizon: int) -> Ranking | None:
        """The ranking by CRPS at this horizon, if a variant has one there."""
        return next((r for r in self.crps_rankings if r.horizon == horizon), None)

    def trait(self, variant: str, name: str) -> Estimate | None:
        """The estimate of a trait."""
        return next((t.estimate for t in self.traits if (t.variant, t.name) == (variant, name)), None)


@dataclass(frozen=True)
class Duel:
    """A pair before its p is corrected."""

    a: str
    b: str
    errors: PairedTest  # of log(error_a / error_b), over the seeds in which neither diverged
    diverged_a: int  # of the seeds that both have
    diverged_b: int
    seeds: int


def errors_at(comparison: Comparison, loop: Loop, horizon: int) -> dict[str, BySeed]:
    """Variant -> errors of its runs that reached this horizon, if any did."""
    found = {
        variant: {run.seed: run.errors[loop][horizon] for run in runs if horizon in run.errors.get(loop, {})}
        for variant, runs in comparison.by_variant.items()
    }
    return {variant: errors for variant, errors in found.items() if errors}


def scores_at(comparison: Comparison, name: str, horizon: int) -> dict[str, BySeed]:
    """Variant -> scores of its runs that have a distribution and reached this horizon, if any did."""
    found = {
        variant: {run.seed: run.scores[name][horizon] for run in runs if horizon in run.scores.get(name, {})}
        for variant, runs in comparison.by_variant.items()
    }
    return {variant: scores for variant, scores in found.items() if scores}


def duel(a: str, b: str, errors_a: BySeed, errors_b: BySeed) -> Duel:
    """Two variants on the seeds that both have."""
    seeds = sorted(errors_a.keys() & errors_b.keys())
    finite = [s for s in seeds if not is_diverged(errors_a[s]) and not is_diverged(errors_b[s])]
    ratios = log_ratios([errors_a[s] for s in finite], [errors_b[s] for s in finite])
    diverged_a, diverged_b = (sum(is_diverged(errors[s]) for s in seeds) for errors in (errors_a, errors_b))
    return Duel(a, b, paired_test(ratios), diverged_a, diverged_b, len(seeds))


def pairs_at(
    errors: Mapping[str, BySeed], loop: Loop, horizon: int, couples: list[tuple[str, str]] | None = None
) -> list[Pair]:
    """Pairs of variants, p corrected after Holm over all of these pairs.

    Args:
        errors: of each variant that has any there.
        loop: of these errors.
        horizon: of these errors.
        couples: which pairs, where both have errors; None: all.
    """
    wanted = combinations(errors, 2) if couples is None else couples
    duels = [duel(a, b, errors[a], errors[b]) for a, b in wanted if a in errors and b in errors]
    decided = [_decide(each) for each in duels]
    corrected = holm([p for p, _ in decided])
    return [
        _pair(loop, horizon, each, p, p_corrected, sign)
        for each, (p, sign), p_corrected in zip(duels, decided, corrected, strict=True)
    ]


def _pair(loop: Loop, horizon: int, each: Duel, p: float, corrected: float, sign: int) -> Pair:
    lower = None if sign == 0 else each.a if sign < 0 else each.b
    better, alone = (lower if value <= ALPHA else None for value in (corrected, p))
    ratio, low, high = (exp(value) for value in (each.errors.mean, each.errors.low, each.errors.high))
    return Pair(loop, horizon, each.a, each.b, ratio, low, high, corrected, better, alone)


def _decide(each: Duel) -> tuple[float, int]:
    """p, and the sign of log(error_a / error_b), from the errors and from how often each diverged.

    The variant that diverges more often is never the better one. If it has clearly smaller errors where neither
    diverged, the two tests contradict each other, and nothing is decided. If they agree, the smaller p counts, doubled.
    """
    p_errors, p_count = each.errors.p, count_test(each.diverged_a, each.diverged_b, each.seeds)
    by_errors = 0 if math.isnan(each.errors.mean) else int(math.copysign(each.errors.mean != 0, each.errors.mean))
    by_count = (each.diverged_a > each.diverged_b) - (each.diverged_a < each.diverged_b)
    if by_count == 0:
        all_diverged = each.errors.n == 0 and each.seeds >= 2
        return (p_count if all_diverged else p_errors), by_errors
    if by_errors == -by_count:
        return (math.nan if p_errors <= ALPHA else p_count), by_count
    return (p_count if math.isnan(p_errors) else min(1.0, 2 * min(p_count, p_errors))), by_count


def rank(cells: list[Cell], pairs: list[Pair]) -> Ranking | None:
    """Who wins among the cells of one loop and horizon; None if there are none.

    Args:
        cells: of the variants that have errors there.
        pairs: all pairs of them.
    """
    if not cells:
        return None
    loop, horizon = cells[0].loop, cells[0].horizon
    sound = [c.variant for c in sorted(cells, key=lambda c: c.error.mean) if not c.error.diverged]
    out = [f"{c.variant} ({c.error.diverged} of {c.runs})" for c in cells if c.error.diverged]
    if not sound:
        return Ranking(loop, horizon, None, [], f"no verdict: every variant diverged, {'; '.join(out)}")
    winner, best, statement = _Contest(pairs).verdict(sound, [cell.variant for cell in cells], _seeds(cells))
    return Ranking(loop, horizon, winner, best, "; diverged: ".join([statement, *(["; ".join(out)] if out else [])]))


class _Contest:
    """The pairs of one horizon, by names."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = {frozenset((pair.a, pair.b)): pair for pair in pairs}

    def verdict(self, sound: list[str], names: list[str], seeds: str) -> tuple[str | None, list[str], str]:
        """Winner, best, and the statement.

        Args:
            sound: variants that diverged in no seed, the smallest error first; at least one.
            names: all variants.
            seeds: how many there are, in words.
        """
        if len(names) == 1:
            return None, names, "only one variant: nothing to compare it with"
        if seeds == ONE_SEED:
            return None, [], "no verdict: one seed"
        lowest, *others = sound
        near = [b for b in others if self.beats(lowest, b) and self.close(lowest, b)]
        best = [lowest, *(b for b in others if b in near or not self.beats(lowest, b))]
        if not all(self.beats(lowest, b) for b in names if b != lowest):
            return None, best, self.undecided(best, names, seeds)
        if near:
            return None, best, f"{lowest} is better by less than 1% than {'; '.join(near)}: {NO_DIFFERENCE}"
        return lowest, best, f"{lowest} wins"

    def undecided(self, best: list[str], names: list[str], seeds: str) -> str:
        """Why nobody wins."""
        lowest, *others = best
        if others and all(self.equal(a, b) for a, b in combinations(best, 2)):
            return f"no difference: the runs of {' and '.join(best)} are equal"
        if not others:
            rivals = [name for name in names if name != lowest and not self.beats(lowest, name)]
            return f"no verdict: {seeds} do not show that {lowest} is better than {'; '.join(rivals)}"
        return f"no verdict: {seeds} do not tell these {len(best)} apart: {'; '.join(best)}"

    def of(self, a: str, b: str) -> Pair:
        return self.pairs[frozenset((a, b))]

    def beats(self, a: str, b: str) -> bool:
        """Whether a is the better one, were this the only test."""
        return self.of(a, b).alone == a

    def close(self, a: str, b: str) -> bool:
        """Whether their errors differ by less than matters in practice."""
        ratio = self.of(a, b).ratio
        return abs(math.log(ratio)) < math.log1p(PRACTICAL) if ratio > 0 else False

    def equal(self, a: str, b: str) -> bool:
        """Whether their runs agree seed by seed."""
        pair = self.of(a, b)
        return pair.low == pair.high == 1


def _seeds(cells: list[Cell]) -> str:
    counts = sorted({cell.runs for cell in cells})
    if counts[-1] == 1:
        return ONE_SEED
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
