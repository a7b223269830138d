"""Variants beside the baselines: which baseline is ahead, and the sentence that says so."""

import math
from collections.abc import Iterable, Sequence

from worldmodel.comparison.contest import Cell, Standing
from worldmodel.comparison.results import Comparison, Loop, is_diverged
from worldmodel.evaluation import shortfall
from worldmodel.statistics import TINY

NAMES = {**shortfall.NAMES, "autoregression": shortfall.NAMES["linear"]}
AHEAD = "Every rule is ahead of every baseline at every horizon."


def standings(comparison: Comparison, cells: Iterable[Cell]) -> list[Standing]:
    """Every cell beside the baselines that were measured there; the floor is none."""
    baselines = [reference for reference in comparison.references if reference is not comparison.floor]
    found = []
    for cell in cells:
        errors = {of.name: of.errors.get(cell.loop, {}).get(cell.horizon, math.nan) for of in baselines}
        errors = {name: error for name, error in errors.items() if not math.isnan(error)}
        if errors:
            ahead = sorted((name for name, error in errors.items() if _ahead(cell, error)), key=lambda n: errors[n])
            sure = [name for name in ahead if cell.error.low > errors[name] or not cell.error.n]
            found.append(Standing(cell.variant, cell.loop, cell.horizon, cell.error, errors, ahead, sure))
    return found


def _ahead(cell: Cell, error: float) -> bool:
    """Whether a baseline with this error is ahead of, or level with, a variant; of one that diverged, it is."""
    return not is_diverged(error) and (cell.error.diverged > 0 or not cell.error.mean < error)


def worse(found: Sequence[Standing], variants: Sequence[str]) -> list[str]:
    """Which variants are worse than the best baseline, where, and by how much; nothing without baselines."""
    if not found:
        return []
    lost: dict[tuple[str, Loop], list[Standing]] = {}
    for each in found:
        if each.ahead:
            lost.setdefault((each.variant, each.loop), []).append(each)
    alike: dict[tuple[Loop, tuple[tuple[int, str, bool], ...]], list[str]] = {}
    for (variant, loop), some in lost.items():
        where = tuple((each.horizon, each.ahead[0], each.error.diverged > 0) for each in some)
        alike.setdefault((loop, where), []).append(variant)
    parts = []
    for (loop, where), some in alike.items():
        who = "every variant" if len(some) == len(variants) > 1 else " and ".join(some)
        horizons = _words([str(horizon) for horizon, _, _ in where], "and")
        those = [each for variant in some for each in lost[variant, loop]]
        parts.append(f"{who} in {loop} loop at {horizons} steps ({_by(those)})")
    return [f"Worse than a baseline: {'; '.join(parts)}."] if parts else [AHEAD]


def _by(lost: list[Standing]) -> str:
    """`1.2 to 3 times the error of the mean, which may be chance at 320 steps`."""
    texts, names = [], [NAMES.get(name, name) for name in dict.fromkeys(each.ahead[0] for each in lost)]
    sound = [each for each in lost if not each.error.diverged]
    factors = [each.error.mean / max(each.baselines[each.ahead[0]], TINY) for each in sound]
    if factors:
        low, high = (f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}" for factor in (min(factors), max(factors)))
        times = low if low == high else f"{low} to {high}"
        texts.append(f"{'the' if times == '1' else f'{times} times the'} error of {_words(names, 'or')}")
    if diverged := [each for each in lost if each.error.diverged]:
        at = _words([str(h) for h in dict.fromkeys(each.horizon for each in diverged)], "and")
        texts.append(f"runs diverged at {at} steps; {_words(names, 'or')} does not")
    if chance := dict.fromkeys(e.horizon for e in sound if e.error.n > 1 and e.ahead[0] not in e.sure):
        texts.append(f"which may be chance at {_words([*map(str, chance)], 'and')} steps")
    return ", ".join(texts)


def _words(names: Sequence[str], last: str) -> str:
    *before, end = names
    return f"{', '.join(before)} {last} {end}" if before else end
