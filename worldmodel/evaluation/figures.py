"""Pictures of rollouts and of the error against the horizon."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.evaluation.film import draw_film
from worldmodel.evaluation.horizon import HorizonCurves
from worldmodel.evaluation.rollouts import Example
from worldmodel.tasks.recall import RecallScores

TRUTH, MODEL, COPY, MEAN = "#333333", "#0072b2", "#d55e00", "#999999"  # Okabe-Ito: told apart by the colour-blind


def rollout_figure(
    curves: HorizonCurves, steps: int, title: str, max_entries: int = 3, shown: int | None = None
) -> Figure:
    """Truth against open-loop prediction for a few rollouts (curves, film strips), the error, and the state's norm.

    Args:
        curves: of a model.
        steps: T, the trained horizon, marked in every panel.
        title: above all.
        max_entries: observation entries that are drawn.
        shown: steps of a rollout that are drawn; None: 10 T.
    """
    examples = curves.examples
    layout = examples[0].layout
    entries = min(max_entries, layout.vector_dim)
    heights = [2.1 * entries] * (entries > 0) + [3.2] * bool(layout.images) + [3.6]
    figure = Figure(figsize=(13, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=13)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    upper, lower = list(parts[:-1, 0]), parts[-1, 0]
    if entries:
        _trajectories(upper[0], examples, entries, steps, 10 * steps if shown is None else shown)
    if layout.images:
        films = examples[:2]
        for axes, example in zip(upper[-1].subplots(1, len(films), squeeze=False)[0], films, strict=True):
            draw_film(axes, example)
    error, norm = lower.subplots(1, 2, width_ratios=[2, 1])
    _error(error, curves, steps)
    _norm(norm, curves, steps)
    return figure


def recall_figure(recalled: RecallScores, steps: int, title: str) -> Figure:
    """Accuracy on a sequence task against the length of its sequences; steps: T, the trained horizon."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(recalled.lengths, recalled.accuracy, marker="o", label="model")
    axes.axhline(recalled.chance, color="0.6", linestyle=":", label="chance")
    axes.set(title=title, xscale="log", ylim=(-0.02, 1.03), xlabel="steps of a sequence", ylabel="right answers")
    axes.set_xticks(recalled.lengths, [str(length) for length in recalled.lengths], minor=False)
    axes.minorticks_off()
    _mark_horizon(axes, steps)
    if recalled.counts_to is not None:
        axes.set_title(f"{title}: counts to {recalled.counts_to} (tried up to {recalled.limit})")
    axes.legend(frameon=False, loc="lower left")
    return figure


def learning_figure(trained: list[tuple[int, float]], played: list[tuple[int, float]], title: str) -> Figure:
    """Mean returns against environment steps: of the last training episodes, and of validations."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for points, color, label, marker in ((trained, COPY, "training", ""), (played, MODEL, "validation", "o")):
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker=marker, markersize=4)
    axes.set(title=title, xlabel="environment steps", ylabel="mean return of an episode")
    axes.legend(frameon=False, loc="best")
    axes.grid(alpha=0.25)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG."""
    figure.savefig(path, dpi=110)


def _trajectories(figure: Any, examples: list[Example], entries: int, steps: int, shown: int) -> None:
    panels = figure.subplots(entries, len(examples), squeeze=False, sharey="row", sharex="col")
    for column, example in zip(panels.T, examples, strict=True):
        for entry, axes in enumerate(column):
            _trajectory(axes, example, entry, steps, shown)
        column[0].set_title(example.name, fontsize=9)
        column[-1].set_xlabel("steps without observations")
    for entry, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(f"observation[{entry}]")
    panels[0, 0].legend(loc="lower left", fontsize=8, ncols=2)


def _trajectory(axes: Axes, example: Example, entry: int, steps: int, shown: int) -> None:
    shown = min(len(example.prediction), shown)
    truth, prediction = example.truth[: shown + 1, entry], example.prediction[:shown, entry]
    axes.plot(np.arange(shown + 1), truth, color=TRUTH, linewidth=2.2, alpha=0.45, label="truth")
    axes.plot(np.arange(1, shown + 1), prediction, color=MODEL, linewidth=1.2, label="model, open loop")
    _mark_horizon(axes, steps)
    spread = float(np.ptp(truth)) or 1.0  # a prediction that runs away must not flatten the truth
    axes.set_ylim(truth.min() - 0.4 * spread, truth.max() + 0.4 * spread)
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)


def _error(axes: Axes, curves: HorizonCurves, steps: int) -> None:
    for values, color, label in (
        (curves.copy_last, COPY, "copy the last observation"),
        (curves.mean, MEAN, "predict the mean"),
        (curves.nmse, MODEL, "model, open loop"),
    ):
        axes.plot(curves.horizon, np.where(np.isfinite(values), values, np.nan), color=color, label=label)
    axes.axhline(curves.threshold, color=TRUTH, linewidth=0.8, linestyle=":")
    if curves.crossing is not None:
        axes.plot(curves.crossing, curves.threshold, "o", color=MODEL, markersize=5)
    _mark_horizon(axes, steps)
    finite = curves.nmse[np.isfinite(curves.nmse) & (curves.nmse > 0)]
    axes.set(xscale="log", yscale="log", xlabel="horizon (steps)", ylabel="error / variance")
    axes.set_ylim(min(finite.min() if len(finite) else 1e-2, 0.5) / 2, 8)
    passes = "" if curves.crossing is None else f"passes {curves.threshold:g} at step {curves.crossing}; "
    axes.set_title(f"open-loop error ({passes}dashed: the trained horizon, {steps} steps)", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25, which="both")


def _norm(axes: Axes, curves: HorizonCurves, steps: int) -> None:
    axes.plot(curves.horizon, np.where(np.isfinite(curves.hidden_norm), curves.hidden_norm, np.nan), color=MODEL)
    _mark_horizon(axes, steps)
    axes.set(xscale="log", xlabel="horizon (steps)", ylabel="mean ‖h‖")
    axes.set_ylim(0, 1.25 * max(curves.hidden_norm[np.isfinite(curves.hidden_norm)], default=1.0))
    axes.set_title("hidden state", fontsize=10)
    axes.grid(alpha=0.25, which="both")


def _mark_horizon(axes: Axes, steps: int) -> None:
    axes.axvline(steps, color=TRUTH, linewidth=0.8, linestyle="--", alpha=0.6)
