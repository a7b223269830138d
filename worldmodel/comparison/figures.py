"""Plotly figures of a comparison: lines with bands over seeds, and rollouts against the truth.

A rule has the same colour everywhere (Okabe-Ito, safe for the colour-blind); a start from zero is dashed. Every trace
of a variant carries its name as `meta`, by which the page hides and shows it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from worldmodel.comparison.lines import Band, Points, bands, over_floor, relative_norm, stateful, thinned
from worldmodel.comparison.results import DIVERGED, Comparison, Curve, Curves, ExampleRollout, Loop

COLORS = {
    "gated_norm": "#0072b2",
    "residual": "#d55e00",
    "gated": "#56b4e9",
    "direct": "#009e73",
    "unit_norm": "#cc79a7",
    "gru": "#e69f00",
    "lstm": "#000000",  # the page draws black in the colour of its text
}
SPARE = ["#8b7d00", "#6a3d9a", "#a6611a", "#5c7a29"]  # of all other rules
DASHES = {"carry": ["solid", "longdash", "longdashdot"], "zero": ["dash", "dot", "dashdot"]}
REFERENCE_DASHES = {"kalman": "dash", "autoregression": "longdashdot", "copy_last": "dot", "mean": "dashdot"}
GREY = "#808080"  # visible on white and on black
PLAIN = {"l": 62, "r": 14, "t": 14, "b": 44}  # pixels around a plot
HIGHEST = 1e3  # largest error or norm that is drawn


@dataclass(frozen=True)
class Look:
    """Style of a variant's lines; `dash` as plotly calls it."""

    color: str
    dash: str


def looks(comparison: Comparison) -> dict[str, Look]:
    """Colour by rule, dash by start, another dash for each further variant of both."""
    others = dict.fromkeys(of["rule"] for of in comparison.axes.values() if of["rule"] not in COLORS)
    colors = COLORS | {rule: SPARE[i % len(SPARE)] for i, rule in enumerate(others)}
    count: dict[tuple[str, str], int] = {}
    styles = {}
    for variant, of in comparison.axes.items():
        kind = (of["rule"], of.get("start", "carry"))
        dashes = DASHES.get(kind[1], DASHES["carry"])
        styles[variant] = Look(colors[kind[0]], dashes[count.get(kind, 0) % len(dashes)])
        count[kind] = count.get(kind, 0) + 1
    return styles


def error_figure(comparison: Comparison, curves: dict[str, list[Curves]], loop: Loop) -> go.Figure | None:
    """Error / variance against the step, of all variants and references; None if there is nothing to draw."""
    horizons = comparison.design["horizons"]
    found = bands(curves, loop, lambda curve: thinned(curve, curve.nmse, loop, horizons))
    lines = {
        reference.name: (reference.title, thinned(curve, curve.nmse, loop, horizons))
        for reference in comparison.references
        if (curve := reference.curves.get(loop)) is not None
    }
    return _figure(comparison, "error / variance", found, lines)


def regret_figure(comparison: Comparison, curves: dict[str, list[Curves]], loop: Loop) -> go.Figure | None:
    """Error / the floor's error against the step; None without a floor."""
    horizons = comparison.design["horizons"]
    below = comparison.floor.curves.get(loop) if comparison.floor else None
    if below is None or not len(below.step):
        return None
    floor = thinned(below, below.nmse, loop, horizons)

    errors = bands(curves, loop, lambda curve: thinned(curve, curve.nmse, loop, horizons))
    found = {variant: over_floor(one, floor) for variant, one in errors.items()}
    return _figure(comparison, "error / floor", found, {"kalman": ("the floor", (floor[0], np.ones(len(floor[0]))))})


def norm_figure(comparison: Comparison, curves: dict[str, list[Curves]], loop: Loop) -> go.Figure | None:
    """Mean norm of the hidden state / the norm at T, against the step; None if no run has a state."""
    norms = {variant: stateful(runs, loop) for variant, runs in curves.items()}

    def sample(curve: Curve) -> Points:
        return thinned(curve, relative_norm(curve, comparison.design["steps"]), loop, comparison.design["horizons"])

    return _figure(comparison, "‖h‖ / ‖h‖ at T", bands(norms, loop, sample, limit=HIGHEST), {})


def rollout_figure(examples: list[ExampleRollout], look: Look, steps: int, longest: int) -> go.Figure:
    """Truth and a variant's open-loop predictions, one panel for each entry of the observation.

    Args:
        examples: the same rollout by each finished seed; the first is drawn strongest.
        look: of the variant.
        steps: T, marked in the panels.
        longest: number of steps shown.
    """
    entries = examples[0].entries
    figure: Any = make_subplots(len(entries), 1, shared_xaxes=True, vertical_spacing=0.5 / (1 + 2 * len(entries)))
    for i, entry in enumerate(entries):
        true = examples[0].truth[: longest + 1, i]
        spread = float(np.ptp(true)) or 1.0  # a diverging prediction must not flatten the truth
        low, high = float(true.min() - 0.4 * spread), float(true.max() + 0.4 * spread)
        where, what = {"row": i + 1, "col": 1}, f"{escape(entry)} %{{y:.3g}}, step %{{x}}<extra></extra>"
        figure.add_scatter(
            x=np.arange(len(true)), y=_short(true), line_color=GREY, line_width=4, opacity=0.45,
            hovertemplate=f"truth: {what}", **where,
        )  # fmt: skip
        for number, example in reversed(list(enumerate(examples))):
            predicted = example.prediction[:longest, i]
            shown = np.where(np.isfinite(predicted), predicted, np.nan).clip(low, high)
            line = {"color": look.color, "width": 1 if number else 1.7}
            figure.add_scatter(
                x=np.arange(1, len(shown) + 1), y=_short(shown), line=line, opacity=0.45 if number else 1.0,
                hovertemplate=f"predicted: {what}", **where,
            )  # fmt: skip
        edge = 0.02 * (high - low)  # room for a clipped line
        figure.update_yaxes(range=[low - edge, high + edge], nticks=4, **where)
        axis = str(i + 1) if i else ""
        refs = {"xref": f"x{axis} domain", "yref": f"y{axis} domain"}
        at = refs | {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text=escape(entry), showarrow=False, font_size=11, **at)
    _mark(figure, [steps] if steps < longest else [])
    figure.update_traces(mode="lines")
    figure.update_xaxes(range=[0, longest], nticks=6)
    return styled(figure, 50 + 105 * len(entries), {"l": 36, "r": 8, "t": 18, "b": 28})


def _figure(
    comparison: Comparison, title: str, variants: dict[str, Band], lines: dict[str, tuple[str, Points]]
) -> go.Figure | None:
    """Bands of variants and lines of references (name -> title, points) on log-log axes with the multiples of T."""
    if not variants and not lines:
        return None
    figure: Any = go.Figure()
    styles = looks(comparison)
    diverged = {run.variant for run in comparison.results if run.diverged}
    calm = [one.middle for variant, one in variants.items() if variant not in diverged]
    low, high = _range([values for _, (_, values) in lines.values()] + calm, [one.middle for one in variants.values()])
    for variant, one in variants.items():
        _draw_band(figure, variant, one, styles[variant], high)
    for name, (words, (step, values)) in lines.items():
        figure.add_scatter(
            x=step,
            y=_short(np.where(values <= high, values, np.nan)),
            mode="lines",
            line={"color": GREY, "dash": REFERENCE_DASHES.get(name, "dot"), "width": 1.5},
            hovertemplate=f"<b>{escape(words)}</b><br>step %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    figure.data = sorted(figure.data, key=lambda trace: trace.fill is None)  # bands below lines
    values, words = _ticks(low, high)
    figure.update_yaxes(type="log", title=title, range=np.log10([low, high]), tickvals=values, ticktext=words)
    longest = max([int(one.step[-1]) for one in variants.values()] + [int(step[-1]) for _, (step, _) in lines.values()])
    steps = comparison.design["steps"]
    horizons = [horizon for horizon in comparison.design["horizons"] if horizon <= longest]
    _mark(figure, horizons)
    for horizon in horizons:
        multiple = "T" if horizon == steps else f"{horizon / steps:g}T"
        at = {"x": np.log10(horizon), "y": 1, "yref": "paper", "yanchor": "bottom", "yshift": 5}
        figure.add_annotation(text=multiple, showarrow=False, font_size=11, **at)
    figure.update_xaxes(type="log", title="steps", tickvals=10 ** np.arange(7), range=[0, np.log10(longest) + 0.03])
    return styled(figure, 360, {"l": 58, "r": 14, "t": 30, "b": 44})


def _range(calm: list[np.ndarray], every: list[np.ndarray]) -> tuple[float, float]:
    """The range of the axis. What diverges is cut off, and does not squash the rest."""
    finite = [values[np.isfinite(values) & (values > 0)] for values in calm]
    high = min(1.6 * max((float(values.max()) for values in finite if len(values)), default=DIVERGED), HIGHEST)
    below = finite + [values[(values > 0) & (values <= high)] for values in every]
    low = min((float(values.min()) for values in below if len(values)), default=high / 100)
    return low * (low / high) ** 0.05, high


def _draw_band(figure: go.Figure, variant: str, one: Band, look: Look, ceiling: float) -> None:
    """Draw the band, the line up to the plot's top, and a triangle there for each seed that diverges."""
    inside = np.isfinite(one.low) & (one.middle <= ceiling)
    step, low, high = one.step[inside], one.low[inside], np.minimum(one.high, ceiling)[inside]
    if len(step):
        figure.add_scatter(
            x=np.concatenate([step, step[::-1]]), y=_short(np.concatenate([low, high[::-1]])), mode="lines",
            fill="toself", fillcolor=look.color, line_width=0, opacity=0.16, hoverinfo="skip", meta=variant,
        )  # fmt: skip
    shown = np.where(one.middle <= ceiling, one.middle, np.nan)
    leaves = np.flatnonzero(np.isnan(shown[1:]) & ~np.isnan(shown[:-1])) + 1
    shown[leaves] = ceiling  # the line ends at the edge
    ends = "<br>95%: %{customdata[0]:.4g} to %{customdata[1]:.4g}" if len(step) else ""
    name = f"<b>{escape(variant)}</b><br>"
    figure.add_scatter(
        x=one.step,
        y=_short(shown),
        mode="lines",
        line={"color": look.color, "dash": look.dash, "width": 2},
        customdata=_short(np.stack([one.low, one.high, one.seeds], axis=1)),
        hovertemplate=f"{name}step %{{x}}: %{{y:.4g}}{ends}<br>"
        f"%{{customdata[2]}} of {len(one.values)} seeds<extra></extra>",
        meta=variant,
    )
    gone = [
        (int(one.step[np.argmax(of > ceiling)]), float(of.max()))
        for of, diverged in zip(one.values, one.gone, strict=True)
        if diverged.any() and of.max() > ceiling
    ]
    if gone:
        figure.add_scatter(
            x=[left for left, _ in gone],
            y=[ceiling] * len(gone),
            mode="markers",
            marker={"symbol": "triangle-up", "size": 11, "color": look.color},
            cliponaxis=False,
            customdata=[f"{highest:.2g}" for _, highest in gone],
            hovertemplate=f"{name}a seed leaves the plot at step %{{x}}<br>and reaches %{{customdata}}<extra></extra>",
            meta=variant,
        )


def _mark(figure: go.Figure, steps: Iterable[int]) -> None:
    for step in steps:
        figure.add_vline(step, line={"color": GREY, "width": 1, "dash": "dot"}, opacity=0.7, layer="below")


def styled(figure: go.Figure, height: int, margin: dict[str, int] = PLAIN) -> go.Figure:
    """A transparent background: the page decides on light and dark."""
    axis = {"gridcolor": "rgba(128,128,128,0.22)", "linecolor": GREY, "zeroline": False, "title_standoff": 6}
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    return figure.update_layout(
        template="none",
        height=height,
        margin=margin,
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"},
        hoverlabel_align="left",
        dragmode=False,  # scrolling the page on a touchscreen must not zoom
    )


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers on a log axis, from the coarsest grid that has four of them without crowding."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    kept: list[float] = []
    for grid in ([1], [1, 3], [1, 2, 5], *(np.arange(1, 10, step) for step in (1, 0.5, 0.2, 0.05, 0.01))):
        kept = []
        for value in (round(float(factor) * 10.0**decade, 12) for factor in grid for decade in decades):
            apart = min((abs(np.log(value / other)) for other in kept), default=np.inf)
            if low <= value <= high and apart > np.log(high / low) / 11:
                kept.append(value)
        if len(kept) >= 4:
            break
    return kept, [f"{value:.4g}" for value in kept]


def _short(values: np.ndarray) -> np.ndarray:
    """In float32, which takes half the bytes in the page."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
