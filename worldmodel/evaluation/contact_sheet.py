"""A dataset on one page: frames or curves of a few episodes, lengths and returns of all."""

import math
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from worldmodel.data.episode import Episode, Source
from worldmodel.data.info import Info, shown_key
from worldmodel.data.spaces import Json, image_shape, images_of

SHEET_EPISODES, SHEET_FRAMES = 4, 8
CURVES = 4  # entries of a vector that are drawn
COLORS = ("#3b6fb6", "#d9793d", "#4a9d6e", "#a05fa8")
INK, FAINT = "#30343b", "#8b919c"


def contact_sheet(source: Source, info: Info) -> Figure:
    """Frames of the first episodes, or curves of their first entries and actions; lengths and returns of all.

    Reads the first episodes of the source again.
    """
    shown = list(islice(source.episodes(), SHEET_EPISODES))
    images = [key for key, leaf in source.observation_space.items() if image_shape(leaf)]
    figure = Figure(figsize=(13, 1.75 * len(shown) + 3.4), layout="constrained", facecolor="white")
    parts = figure.subfigures(2, 1, height_ratios=[max(1.75 * len(shown), 1), 2.6], squeeze=False)
    top, bottom = parts[0, 0], parts[1, 0]
    title = f"{info.path}:  {info.episodes:,} episodes, {info.steps:,} steps"
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    if images and shown:
        _frames(top, shown, images[0], source.observation_space[images[0]])
    elif shown:
        _curves(top, shown, source)
    axes = bottom.subplots(1, 2)
    _histogram(axes[0], info.lengths, "steps per episode")
    _histogram(axes[1], info.returns[np.isfinite(info.returns)], "return per episode")
    return figure


def _frames(figure: SubFigure, shown: list[tuple[str, Episode]], key: str, leaf: Json) -> None:
    grid = figure.subplots(len(shown), SHEET_FRAMES, squeeze=False)
    for row, (name, episode) in zip(grid, shown, strict=True):
        steps = np.linspace(0, len(episode), SHEET_FRAMES).round().astype(int)
        for axes, step in zip(row, steps, strict=True):
            axes.imshow(_picture(episode.observations[key][step], leaf), cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#dfe2e7")
            axes.set_title(f"step {step}", fontsize=8, color=FAINT, pad=3)
        row[0].set_ylabel(_short(name), fontsize=9, color=INK)


def _picture(frame: np.ndarray, leaf: Json) -> np.ndarray:
    """A frame as (H, W) or (H, W, 3); for another number of channels, the last one (the newest of a stack)."""
    frame = images_of(frame[None], leaf)[0]
    return frame if frame.shape[-1] == 3 else frame[..., -1]


def _curves(figure: SubFigure, shown: list[tuple[str, Episode]], source: Source) -> None:
    key = next(iter(source.observation_space))
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[2, 1])
    for (left, right), (name, episode) in zip(grid, shown, strict=True):
        _lines(left, episode.observations[key])
        _lines(right, episode.actions, steps=True)
        left.set_ylabel(_short(name), fontsize=9, color=INK)
    width = np.prod(source.observation_space[key].get("shape", [1]), dtype=int)
    more = f", entries 0 to {CURVES - 1} of {width}" if width > CURVES else ""
    grid[0, 0].set_title(f"{shown_key(key)}{more}", fontsize=10, color=INK, loc="left")
    grid[0, 1].set_title("action", fontsize=10, color=INK, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9, color=FAINT)


def _lines(axes: Axes, values: np.ndarray, steps: bool = False) -> None:
    columns = values.reshape(len(values), -1)[:, :CURVES].T
    for color, column in zip(COLORS, columns, strict=False):
        axes.plot(column, color=color, linewidth=1.2, alpha=0.9, drawstyle="steps-post" if steps else "default")
    axes.margins(x=0.01)
    if values.dtype.kind in "iub":
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _tidy(axes)


def _histogram(axes: Axes, values: np.ndarray, title: str) -> None:
    if len(values):
        axes.hist(values, bins=_bins(values).tolist(), color=COLORS[0], edgecolor="white", linewidth=0.6)
        axes.axvline(float(np.median(values)), color=COLORS[1], linewidth=1.5)
        axes.set_title(f"{title} (median {np.median(values):.4g})", fontsize=10, color=INK, loc="left")
    axes.set_ylabel("episodes", fontsize=9, color=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _tidy(axes)


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of 10 to 40 bins; at whole numbers if all values are whole."""
    low, high, count = values.min(), values.max(), min(40, max(10, len(values) // 4))
    if low == high:
        half = max(0.5, 0.05 * abs(low))
        return np.asarray([low - 3 * half, low - half, low + half, low + 3 * half])
    if np.all(values == np.round(values)):
        width = math.ceil((high - low + 1) / count)
        return np.arange(low - 0.5, high + width + 0.5, width)
    return np.linspace(low, high, count + 1)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9cdd4")
    axes.tick_params(labelsize=8, colors=FAINT, length=3)
    axes.grid(axis="y", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)


def _short(name: str) -> str:
    """The part of an episode's name after the file."""
    return name.rsplit(", ", 1)[-1]
