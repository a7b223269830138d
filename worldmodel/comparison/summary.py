"""A verdict in a few sentences, the most important first."""

import math
from collections.abc import Sequence
from statistics import fmean

from worldmodel.comparison import tuned
from worldmodel.comparison.contest import Cell, Pair, Ranking, Verdict, errors_at, pairs_at
from worldmodel.comparison.lines import relative_norm, stateful
from worldmodel.comparison.results import DIVERGED, LOOPS, Comparison
from worldmodel.comparison.standings import worse
from worldmodel.statistics import geometric

MOST_NAMED = 3  # variants that a sentence lists
GROWTH = 1.5  # of ||h|| beyond the trained horizon: larger factors are reported


def summarize(verdict: Verdict, comparison: Comparison) -> list[str]:
    """4 to 10 sentences on a verdict that has none yet."""
    if not verdict.cells:
        shortest = min(comparison.design["horizons"])
        why = f"No episode is {shortest} steps long" if comparison.results else "No run has finished"
        return [f"{why}: there is nothing to compare.", *_unfinished(comparison)]
    of = {loop: [ranking for ranking in verdict.rankings if ranking.loop == loop] for loop in LOOPS}
    named = {"Open loop": of["open"], "Open loop, by CRPS": verdict.crps_rankings, "Closed loop": of["closed"]}
    sentences = [sentence for name, rankings in named.items() for sentence in _winners(name, rankings)]
    return [
        *worse(verdict.baselines, comparison.variants),
        *sentences,
        *_calibration(verdict, comparison),
        *_equal(verdict),
        _divergence(verdict, comparison),
        *_growth(verdict, comparison),
        *_starts(verdict, comparison),
        *_regret(verdict, comparison),
        *tuned.sentences(comparison),
        *_limits(verdict, comparison),
        *_unfinished(comparison),
    ]


def _winners(name: str, rankings: list[Ranking]) -> list[str]:
    by_text: dict[str, list[int]] = {}
    for ranking in rankings:
        by_text.setdefault(shortly(ranking), []).append(ranking.horizon)
    parts = [f"{_steps(horizons)} {text}" for text, horizons in by_text.items()]
    return [f"{name}: {'; '.join(parts)}."] if parts else []


def _calibration(verdict: Verdict, comparison: Comparison) -> list[str]:
    """What share of the truth the corrected 90% intervals hold, from the lowest to the highest of the horizons."""
    parts = []
    for variant in comparison.variants:
        shares = [s.estimate.mean for s in verdict.scores if (s.variant, s.name) == (variant, "conformal90")]
        if shares:
            low, high = (f"{share:.0%}" for share in (min(shares), max(shares)))
            parts.append(f"{variant} {low if low == high else f'{low} to {high}'}")
    return [f"The truth within 90% intervals, corrected: {'; '.join(parts)}."] if parts else []


def shortly(ranking: Ranking) -> str:
    """The ranking's statement with few names, and without the diverged variants."""
    statement = ranking.statement.split("; diverged: ")[0]
    if ranking.winner or len(ranking.best) <= MOST_NAMED or " do not tell these " not in statement:
        return statement
    return f"no verdict: {len(ranking.best)} are not told apart (lowest: {ranking.best[0]})"


def _equal(verdict: Verdict) -> list[str]:
    """Pairs of variants whose runs agree at every horizon, in both loops."""
    by_couple: dict[str, list[Pair]] = {}
    for pair in verdict.pairs:
        by_couple.setdefault(f"{pair.a} and {pair.b}", []).append(pair)
    couples = [couple for couple, pairs in by_couple.items() if all(pair.low == pair.high == 1 for pair in pairs)]
    return [f"No difference: {_list(couples)} have equal runs at every horizon."] if couples else []


def _divergence(verdict: Verdict, comparison: Comparison) -> str:
    found = []
    for variant in comparison.variants:
        for loop in LOOPS:
            cells = [c for c in verdict.cells if (c.variant, c.loop) == (variant, loop) and c.error.diverged]
            if cells:
                count = f"{cells[-1].error.diverged} of {cells[-1].runs} runs at {cells[-1].horizon}"
                found.append(f"{variant} in {loop} loop from {cells[0].horizon} steps on ({count})")
    meaning = f"an error above {DIVERGED:g} variances, or not finite"
    return f"Diverged ({meaning}): {'; '.join(found)}." if found else f"No run diverged ({meaning})."


def _growth(verdict: Verdict, comparison: Comparison) -> list[str]:
    """Growth of the hidden state from T to the longest horizon; a factor, since states differ in width."""
    steps, longest = comparison.design["steps"], max(verdict.horizons)
    found, curves = [], comparison.curves
    for variant, runs in curves.items():
        norms = [relative_norm(run["closed"], steps)[:longest] for run in stateful(runs, "closed")]
        growth = geometric([float(norm[-1]) for norm in norms])
        if growth.diverged:
            found.append(f"{variant} (overflows in {growth.diverged} of {len(norms)} runs)")
        elif growth.mean > GROWTH and not growth.low <= 1:
            found.append(f"{variant} ({growth.mean:.3g})")
    if not curves or longest <= steps:
        return []
    where = f"||h|| in closed loop at {longest} steps / at {steps}, above {GROWTH:g}"
    if found:
        return [f"The hidden state grows ({where}): {'; '.join(found)}."]
    return [f"No hidden state grows ({where})."]


def _starts(verdict: Verdict, comparison: Comparison) -> list[str]:
    """Carried against zero start, rule by rule."""
    couples = _start_couples(comparison)
    if not couples:
        return []
    parts = []
    for loop in LOOPS:
        for horizon in dict.fromkeys((verdict.horizons[0], verdict.horizons[-1])):
            pairs = pairs_at(errors_at(comparison, loop, horizon), loop, horizon, list(couples))
            if pairs:
                parts.append(f"{loop} loop at {horizon} steps {_start_counts(pairs, couples)}")
    return [f"Carry against zero start, rule by rule: {'; '.join(parts)}."]


def _start_couples(comparison: Comparison) -> dict[tuple[str, str], str]:
    """(variant with carry, the same with zero) -> the name of both."""
    couples = {}
    for carry, axes in comparison.axes.items():
        for zero, others in comparison.axes.items():
            if axes.get("start") == "carry" and others == {**axes, "start": "zero"}:
                couples[carry, zero] = " ".join(value for axis, value in axes.items() if axis != "start")
    return couples


def _start_counts(pairs: list[Pair], couples: dict[tuple[str, str], str]) -> str:
    sides = {
        "carry is better": [couples[pair.a, pair.b] for pair in pairs if pair.better == pair.a],
        "zero is better": [couples[pair.a, pair.b] for pair in pairs if pair.better == pair.b],
        "undecided": [couples[pair.a, pair.b] for pair in pairs if pair.better is None],
    }
    everywhere = {1: "it", 2: "both"}.get(len(pairs), f"all {len(pairs)}")
    texts = [
        f"{side} for {everywhere if len(rules) == len(pairs) else ', '.join(rules)}"
        for side, rules in sides.items()
        if rules
    ]
    ratios = [1 / pair.ratio for pair in pairs if pair.ratio > 0]
    spread = f" (error of zero / carry {_range(ratios)})" if ratios else ""
    return f"{', '.join(texts)}{spread}"


def _regret(verdict: Verdict, comparison: Comparison) -> list[str]:
    """Regret of the variant closest to the floor, and of the default rule."""
    by_variant: dict[str, list[Cell]] = {}
    for cell in verdict.cells:
        if cell.regret:
            by_variant.setdefault(cell.variant, []).append(cell)
    if comparison.floor is None or not by_variant:
        return []
    default = [v for v in by_variant if comparison.axes[v].get("rule") == "gated_norm"]
    default.sort(key=lambda v: comparison.axes[v].get("start") != "carry")
    sound = [v for v, cells in by_variant.items() if not any(cell.error.diverged for cell in cells)]
    lowest = min(sound, key=lambda v: fmean(math.log(c.regret.mean) for c in by_variant[v] if c.regret), default=None)
    named = list(dict.fromkeys(([lowest] if lowest else []) + default[:1]))
    parts = [f"{v}{' (the lowest)' if v == lowest else ''} {_regrets(verdict, by_variant[v])}" for v in named]
    floor = f"error / error of {comparison.floor.title}, {_steps(verdict.horizons)}"
    return [f"Regret ({floor}): {'; '.join(parts)}."] if parts else []


def _regrets(verdict: Verdict, cells: list[Cell]) -> str:
    parts = []
    for loop in LOOPS:
        by_horizon = {cell.horizon: cell for cell in cells if cell.loop == loop}
        if by_horizon:
            texts = [_regret_text(by_horizon.get(horizon)) for horizon in verdict.horizons]
            parts.append(f"{', '.join(texts)} in {loop} loop")
    return " and ".join(parts)


def _regret_text(cell: Cell | None) -> str:
    if cell is None or cell.regret is None:
        return "-"
    return f"{cell.regret.mean:.3f}" if cell.regret.n else "diverged"


def _limits(verdict: Verdict, comparison: Comparison) -> list[str]:
    """What the seeds, or the episodes, leave open."""
    sentences = []
    missing = [horizon for horizon in comparison.design["horizons"] if horizon not in verdict.horizons]
    if missing:
        sentences.append(f"No errors {_steps(missing)}: no episode is that long.")
    if max(cell.runs for cell in verdict.cells) < 2:
        return [*sentences, "One seed says nothing about others: no intervals, no verdict; add --seeds."]
    return sentences


def _unfinished(comparison: Comparison) -> list[str]:
    runs, failures = comparison.design["runs"], comparison.failures
    left = len(runs) - len(comparison.results) - len(failures)
    sentences = []
    if failures:
        named = [f"{failure.variant}, seed {failure.seed} ({failure.reason})" for failure in failures]
        sentences.append(f"{len(failures)} of {len(runs)} runs failed: {_list(named)}.")
    return [*sentences, f"{left} of {len(runs)} runs have not finished."] if left > 0 else sentences


def _steps(horizons: Sequence[int]) -> str:
    *before, last = map(str, horizons)
    return f"at {', '.join(before)} and {last} steps" if before else f"at {last} steps"


def _list(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return "; ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
