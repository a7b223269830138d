"""Who wins where: each variant at each horizon in a word."""

from worldmodel.comparison.contest import Verdict
from worldmodel.comparison.results import Comparison, Loop
from worldmodel.comparison.standings import NAMES

LEGEND = (
    "wins: better than every other; best: the lowest error, and those that the seeds do not tell from it; 1.4x: 1.4"
    " times the lowest error; behind: a baseline has a smaller error"
)


def outcome(verdict: Verdict, variant: str, loop: Loop, horizon: int) -> tuple[str, str]:
    """How a variant does at a horizon, and the best of the baselines that are ahead of it, if any are."""
    cell, ranking = verdict.cell(variant, loop, horizon), verdict.ranking(loop, horizon)
    if cell is None or ranking is None:
        return "-", ""
    standings = (s for s in verdict.baselines if (s.variant, s.loop, s.horizon) == (variant, loop, horizon))
    ahead = next((standing.ahead for standing in standings), [])
    behind = f"behind {NAMES.get(ahead[0], ahead[0])}" if ahead else ""
    if cell.error.diverged:
        return f"diverged {cell.error.diverged}/{cell.runs}", behind
    if variant == ranking.winner:
        return "wins", behind
    if variant in ranking.best:
        return "best", behind
    sound = [c.error.mean for c in verdict.cells if (c.loop, c.horizon) == (loop, horizon) and not c.error.diverged]
    lowest = min(sound)
    return (f"{cell.error.mean / lowest:.3g}x" if lowest > 0 else "-"), behind


def matrix_rows(verdict: Verdict, comparison: Comparison, loop: Loop) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each variant; a star marks winners."""
    if not any(cell.loop == loop for cell in verdict.cells):
        return [], []
    rows = []
    for variant in comparison.variants:
        found = [outcome(verdict, variant, loop, horizon) for horizon in verdict.horizons]
        rows.append([variant, *(", ".join(filter(None, each)) + " *" * (each[0] == "wins") for each in found)])
    return ["variant", *(f"{horizon} steps" for horizon in verdict.horizons)], rows
