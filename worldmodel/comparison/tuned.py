"""A tuning in the verdict and the report: what was tried, who won, and whether the range was wide enough."""

from collections.abc import Iterator
from html import escape
from typing import Any

import plotly.graph_objects as go

from worldmodel.comparison.results import Comparison
from worldmodel.comparison.tuning import Range, Tuned, Tuning, value_of

SHADES = ("#b9cfe0", "#6a9fc8", "#0072b2")  # of the rungs, the last the strongest
WINNER = "#d55e00"


def sentences(comparison: Comparison) -> list[str]:
    """That the rules were tuned alike, and which winners lie at a range's edge; nothing without tuning."""
    if (tuning := comparison.tuning) is None:
        return []
    over = "; ".join(map(str, tuning.ranges))
    edges = [words for each in comparison.tuned for words in at_edge(tuning, each)]
    wider = f". At the edge of the range, so that a wider one may hold a better: {'; '.join(edges)}" if edges else ""
    unfinished = [each.variant for each in comparison.tuned if each.winner is None]
    left = f". The tuning has not ended: {'; '.join(unfinished)}" if unfinished else ""
    return [f"Tuned alike: {len(tuning.trials)} trials a rule over {over}{wider}{left}."]


def at_edge(tuning: Tuning, tuned: Tuned) -> Iterator[str]:
    """The winner's values beyond which no trial lies, in words; of numbers alone."""
    for each in tuning.ranges if tuned.winner is not None else ():
        values = [value_of(trial[each.key]) for trial in tuning.trials]
        best = values[tuned.winner or 0]
        if isinstance(best, float) and all(isinstance(value, float) for value in values) and len(set(values)) > 2:
            side = "lowest" if best == min(values) else "highest" if best == max(values) else None
            if side is not None:
                yield f"{tuned.variant} with {each.key} {best:g}, the {side} that was tried"


def tuning_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each trial of each variant, the best at its last rung first; a star marks the winner."""
    tuning = comparison.tuning
    if tuning is None:
        return [], []
    keys = [each.key for each in tuning.ranges]
    headings = ["variant", "trial", *keys, *(f"{tuning.metric} at step {rung.steps:,}" for rung in tuning.rungs)]
    rows = []
    for each in comparison.tuned:
        for number in sorted(range(len(tuning.trials)), key=lambda n: _place(tuning, each, n)):
            scores = [each.scores[number].get(rung.steps) for rung in tuning.rungs]
            texts = ["-" if score is None else f"{score:.4g}".replace("nan", "diverged") for score in scores]
            star = " *" if number == each.winner else ""
            rows.append([each.variant, f"{number}{star}", *(tuning.trials[number][key] for key in keys), *texts])
    return headings, rows


def _place(tuning: Tuning, tuned: Tuned, number: int) -> tuple[int, float, int]:
    scores = tuned.scores[number]
    reached = [rung.steps for rung in tuning.rungs if rung.steps in scores]
    return -len(reached), tuning.loss(scores[reached[-1]]) if reached else 0.0, number


def tuning_figures(comparison: Comparison) -> Iterator[tuple[str, str, go.Figure]]:
    """(variant, key, figure): value against score, a colour for each rung; the winner is ringed."""
    tuning = comparison.tuning
    for each in comparison.tuned if tuning is not None else ():
        for of in tuning.ranges if tuning is not None else ():
            yield each.variant, of.key, _figure(tuning, each, of)


def _figure(tuning: Tuning | None, tuned: Tuned, of: Range) -> go.Figure:
    assert tuning is not None
    figure: Any = go.Figure()
    for level, rung in enumerate(tuning.rungs):
        reached = [n for n, scores in enumerate(tuned.scores) if rung.steps in scores]
        color = SHADES[max(0, len(SHADES) - len(tuning.rungs) + level)]
        figure.add_scatter(
            x=[value_of(tuning.trials[n][of.key]) for n in reached],
            y=[tuned.scores[n][rung.steps] for n in reached],
            name=f"step {rung.steps:,}",
            mode="markers",
            marker={
                "color": color,
                "size": [13 if n == tuned.winner else 8 for n in reached],
                "line": {"color": WINNER, "width": [3 if n == tuned.winner else 0 for n in reached]},
            },
            hovertemplate=f"{escape(of.key)} %{{x}}<br>{escape(tuning.metric)} %{{y:.4g}}"
            f"<br>at step {rung.steps:,}<extra></extra>",
            meta=tuned.variant,
        )
    figure.update_xaxes(
        title=escape(of.key), **({"type": "log", "dtick": 1, "exponentformat": "none"} if of.log else {})
    )
    figure.update_yaxes(title=escape(tuning.metric), type=_scale(tuned))
    return figure


def _scale(tuned: Tuned) -> str | None:
    return "log" if all(score > 0 for scores in tuned.scores for score in scores.values() if score == score) else None
