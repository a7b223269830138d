"""Pictures of rollouts, of errors against the horizon, of recall, and of learning curves."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from worldmodel.durable import whole_file
from worldmodel.evaluation.calibration import Calibration
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.free_run import FreeRun
from worldmodel.evaluation.rollouts import Example
from worldmodel.networks import LEVELS
from worldmodel.tasks.recall import RecallScores

# Okabe-Ito: safe for the colour-blind
TRUTH, MODEL, COPY, MEAN, LINEAR, FUTURES = "#333333", "#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7"
APART = "#e69f00"
BASELINES = {"copy_last": (COPY, "copy the last observation"), "mean": (MEAN, "predict the mean"),
             "linear": (LINEAR, "linear autoregression")}  # fmt: skip
LOWEST = 1e-8  # of the errors that the axis makes room for
GAP = 4  # pixels between two pictures of an animation


def rollout_figure(
    curves: HorizonCurves,
    steps: int,
    title: str,
    max_entries: int = 3,
    shown: int | None = None,
    calibration: Calibration | None = None,
) -> Figure:
    """Truth against open-loop prediction for a few rollouts (curves, film strips), the error, and the state's norm.

    Args:
        curves: of a model.
        steps: T, the trained horizon, marked in every panel.
        title: of the figure.
        max_entries: observation entries drawn.
        shown: steps drawn of a rollout; None: 10 T.
        calibration: of a model with a distribution: a panel of how often the truth is within its intervals.
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
            _film_strip(axes, example)
    error, *inside, norm = lower.subplots(
        1, 2 + (calibration is not None), width_ratios=[2, *[1] * bool(calibration), 1]
    )
    _error(error, curves, steps, calibration)
    _norm(norm, curves, steps)
    if calibration is not None:
        _coverage(inside[0], calibration, steps)
    return figure


def free_run_figure(run: FreeRun, title: str, max_entries: int = 3) -> Figure:
    """Truth, free run and their difference over whole episodes: a panel for each entry of each example's vector."""
    entries = min(max_entries, run.examples[0].layout.vector_dim)
    rows = [(i, entry) for i in range(len(run.examples)) for entry in range(entries)]
    figure = Figure(figsize=(13, 0.8 + 1.9 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (i, entry) in zip(panels, rows, strict=True):
        example = run.examples[i]
        truth, prediction = example.truth[1:, entry], example.prediction[:, entry]
        frames = run.seen + np.arange(len(prediction))
        axes.plot(frames, truth, color=TRUTH, linewidth=2.2, alpha=0.45, label="truth")
        axes.plot(frames, prediction, color=MODEL, linewidth=1.2, label="free run")
        axes.plot(frames, truth - prediction, color=COPY, linewidth=0.8, label="truth - free run")
        spread = float(np.ptp(truth)) or 1.0  # a prediction that runs away must not flatten the truth
        axes.set_ylim(min(truth.min(), 0) - 0.4 * spread, max(truth.max(), 0) + 0.4 * spread)
        axes.set_ylabel(run.entries[entry], fontsize=9)
        name = run.names[i].split("/")[-1]
        axes.set_title(f"{name}, {run.entries[entry]}: RMSE {np.sqrt(run.mse[i, entry]):.4g}", fontsize=9)
        axes.margins(x=0.01)
        axes.grid(alpha=0.25)
    panels[0].legend(loc="lower left", fontsize=8, ncols=3)
    panels[-1].set_xlabel(f"frame; the model saw frames 0 to {run.seen - 1}")
    return figure


def recall_figure(recalled: RecallScores, steps: int, title: str) -> Figure:
    """Accuracy on a sequence task against the length of its sequences; `steps` is T, the trained horizon."""
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
    """Mean returns of recent training episodes and of validations, against environment steps."""
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
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def save_animation(examples: list[Example], path: Path, steps: int, side: int = 128, max_frames: int = 200) -> None:
    """Write a GIF: a row per example, with truth, prediction, difference; the caption counts the unseen steps.

    Args:
        examples: of a model with images; the first image key is shown.
        path: of the file.
        steps: T, the trained horizon: the caption says when it is passed.
        side: pixels of a picture's shorter side, at least.
        max_frames: of the animation.
    """
    shown = min(max(len(example.prediction) for example in examples), max_frames)
    films = [_film(example, np.arange(1, len(example.prediction) + 1)) for example in examples]
    height, width = films[0][0].shape[1:3]
    zoom = max(1, -(-side // min(height, width)))
    frames = [_frame([[part[min(t, len(part) - 1)] for part in film] for film in films], zoom) for t in range(shown)]
    for t, frame in enumerate(frames):
        beyond = " (beyond the trained horizon)" if t >= steps else ""
        caption = f"truth | model, open loop | difference     step {t + 1}{beyond}"
        ImageDraw.Draw(frame).text((GAP, frame.height - 16), caption, fill="white")
    with whole_file(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0)


def difference(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Grey (127) where both agree, brighter where the prediction is, darker where the truth is: uint8."""
    return ((prediction.astype(np.int16) - truth + 255) // 2).astype(np.uint8)


def _film(example: Example, ahead: np.ndarray) -> list[np.ndarray]:
    """Truth, prediction and their difference `ahead` steps (N,) after the start, (N, H, W, 3) uint8 each."""
    truth, prediction = _images(example, example.truth[ahead]), _images(example, example.prediction[ahead - 1])
    return [truth, prediction, difference(truth, prediction)]


def _images(example: Example, rows: np.ndarray) -> np.ndarray:
    """The images (N, H, W, 3) uint8 of the first image key in observations (N, O); values out of range are clipped."""
    left, shape = example.layout.vector_dim, next(iter(example.layout.images.values()))
    pixels = np.nan_to_num(rows[:, left : left + int(np.prod(shape))], nan=0, posinf=255, neginf=0)
    images = pixels.clip(0, 255).round().astype(np.uint8).reshape(len(rows), *shape)
    if shape[2] == 1:
        return images.repeat(3, axis=-1)
    missing = max(0, 3 - shape[2])  # two channels are shown as red and green
    return np.pad(images[..., :3], ((0, 0), (0, 0), (0, 0), (0, missing)))


def _frame(rows: list[list[np.ndarray]], zoom: int) -> Image.Image:
    height, width = (zoom * size + GAP for size in rows[0][0].shape[:2])
    canvas = Image.new("RGB", (width * len(rows[0]) + GAP, height * len(rows) + GAP + 18))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            big = Image.fromarray(picture).resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
            canvas.paste(big, (GAP + j * width, GAP + i * height))
    return canvas


def _film_strip(axes: Axes, example: Example, columns: int = 8) -> None:
    """Truth, prediction and difference of the first image key, some steps ahead."""
    ahead = np.unique(np.geomspace(1, len(example.prediction), columns).round().astype(int))
    film = _film(example, ahead)
    height, width = film[0].shape[1:3]
    axes.imshow(np.concatenate([np.concatenate(list(part), axis=1) for part in film]), interpolation="nearest")
    axes.set_xticks(width * (np.arange(len(ahead)) + 0.5), [f"+{t}" for t in ahead])
    axes.set_yticks(height * (np.arange(3) + 0.5), ["truth", "model", "difference"])
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(example.name, fontsize=9)
    for edge in range(1, 3):
        axes.axhline(edge * height - 0.5, color="white", linewidth=1.5)
    for edge in range(1, len(ahead)):
        axes.axvline(edge * width - 0.5, color="white", linewidth=1.5)


def _trajectories(figure: Any, examples: list[Example], entries: int, steps: int, shown: int) -> None:
    panels = figure.subplots(entries, len(examples), squeeze=False, sharey="row", sharex="col")
    names = examples[0].layout.vector_entries
    for column, example in zip(panels.T, examples, strict=True):
        for entry, axes in enumerate(column):
            _trajectory(axes, example, entry, steps, shown)
        column[0].set_title(example.name, fontsize=9)
        column[-1].set_xlabel("steps without observations")
    for entry, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(names[entry])
        truths = np.concatenate([example.truth[: shown + 1, entry] for example in examples])
        spread = float(np.ptp(truths)) or 1.0  # a prediction that runs away must not flatten the truth
        axes.set_ylim(truths.min() - 0.4 * spread, truths.max() + 0.4 * spread)  # of the whole row
    panels[0, 0].legend(loc="lower left", fontsize=8, ncols=2)


def _trajectory(axes: Axes, example: Example, entry: int, steps: int, shown: int) -> None:
    shown = min(len(example.prediction), shown)
    truth, prediction = example.truth[: shown + 1, entry], example.prediction[:shown, entry]
    axes.plot(np.arange(shown + 1), truth, color=TRUTH, linewidth=2.2, alpha=0.45, label="truth")
    axes.plot(np.arange(1, shown + 1), prediction, color=MODEL, linewidth=1.2, label="model, open loop")
    if example.band is not None:
        low, high = example.band[:, :shown, entry]
        axes.fill_between(
            np.arange(1, shown + 1), low, high, color=MODEL, alpha=0.18, linewidth=0, label="90% interval"
        )
    _mark_horizon(axes, steps)
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)


def _error(axes: Axes, curves: HorizonCurves, steps: int, calibration: Calibration | None) -> None:
    lines = [(values, *BASELINES[name]) for name, values in curves.baselines.items()]
    for values, color, label in (*lines, (curves.nmse, MODEL, "model, open loop")):
        _line(axes, curves.horizon, values, color, label)
    if calibration is not None:
        _line(axes, calibration.horizon, calibration.nmse_mean, FUTURES, "mean of the model's futures")
    if curves.disagreement is not None:
        _line(axes, curves.horizon, curves.disagreement, APART, "disagreement of the members")
    axes.axhline(curves.threshold, color=TRUTH, linewidth=0.8, linestyle=":")
    if curves.crossing is not None:
        axes.plot(curves.crossing, curves.threshold, "o", color=MODEL, markersize=5)
    _mark_horizon(axes, steps)
    _log_steps(axes, len(curves.horizon))
    shown = np.concatenate([curves.nmse, *curves.baselines.values()])
    finite = shown[np.isfinite(shown) & (shown > LOWEST)]
    axes.set(yscale="log", ylabel="error / variance")
    axes.set_ylim(min(finite.min() if len(finite) else 1e-2, 0.5) / 2, 8)
    passes = "" if curves.crossing is None else f"passes {curves.threshold:g} at step {curves.crossing}; "
    axes.set_title(f"open-loop error ({passes}dashed: the trained horizon, {steps} steps)", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25, which="both")


def _norm(axes: Axes, curves: HorizonCurves, steps: int) -> None:
    _line(axes, curves.horizon, curves.hidden_norm, MODEL, "hidden state")
    _mark_horizon(axes, steps)
    _log_steps(axes, len(curves.horizon))
    axes.set(ylabel="mean ‖h‖")
    axes.set_ylim(0, 1.25 * max(curves.hidden_norm[np.isfinite(curves.hidden_norm)], default=1.0))
    axes.set_title("hidden state", fontsize=10)
    axes.grid(alpha=0.25, which="both")


def _coverage(axes: Axes, calibration: Calibration, steps: int) -> None:
    for level, color, plain, corrected in zip(
        LEVELS, (LINEAR, MODEL, COPY), calibration.coverage, calibration.conformal, strict=True
    ):
        axes.axhline(level, color=color, linewidth=0.8, linestyle=":")
        axes.plot(calibration.horizon, plain, color=color, linewidth=0.8, alpha=0.5)
        axes.plot(calibration.horizon, corrected, color=color, label=f"{level:.0%} interval")
    _mark_horizon(axes, steps)
    _log_steps(axes, int(calibration.horizon[-1]))
    axes.set(ylim=(0, 1.02), ylabel="share of the truth within")
    axes.set_title("how sure (pale: before correction)", fontsize=10)
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)


def _line(axes: Axes, horizon: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """A line where values are finite; a point, where there is only one."""
    marker = "o" if len(horizon) == 1 else ""
    axes.plot(horizon, np.where(np.isfinite(values), values, np.nan), color=color, label=label, marker=marker)


def _log_steps(axes: Axes, longest: int) -> None:
    """A logarithmic axis of horizons 1 .. longest, with labels at round numbers that leave each other room."""
    axes.set(xscale="log", xlabel="horizon (steps)")
    factors = (1, 2, 5) if longest <= 100 else (1, 3) if longest <= 1000 else (1,)
    ticks = [factor * 10**k for k in range(len(str(longest))) for factor in factors if factor * 10**k <= longest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def _mark_horizon(axes: Axes, steps: int) -> None:
    axes.axvline(steps, color=TRUTH, linewidth=0.8, linestyle="--", alpha=0.6)
