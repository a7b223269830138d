"""What a dataset holds: counted in one pass, as rows for a table, and shown on a contact sheet."""

import math
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from worldmodel.data.episode import Episode, Source
from worldmodel.data.spaces import Json, image_shape

SHEET_EPISODES, SHEET_FRAMES = 4, 8
CURVES = 4  # entries drawn of a vector
MOST_COUNTED = 1024  # discrete actions that are counted one by one
SHOWN = 6  # entries told in a row
BLOCK = 256  # rows whose statistics are taken at once
COLORS = ("#3b6fb6", "#d9793d", "#4a9d6e", "#a05fa8")
INK, FAINT = "#30343b", "#8b919c"


@dataclass
class Stats:
    """Of values (N, ...) seen in pieces: count, and per entry (images: of all pixels) minimum, maximum, mean, std."""

    leaf: Json
    count: int = 0
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sum of squared deviations
    not_finite: int = 0  # values, which count nowhere else

    @property
    def std(self) -> np.ndarray:
        """Standard deviation per entry."""
        return np.sqrt(self.square / max(self.count, 1))

    def add(self, values: np.ndarray) -> None:
        """Take values (N, ...); rows with NaN or infinite values are left out."""
        for begin in range(0, len(values), BLOCK):  # a video as float64 would be eight times as large
            self._merge(values[begin : begin + BLOCK])

    def _merge(self, values: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979, equation 2.1."""
        rows = values.reshape(-1, 1) if image_shape(self.leaf) else values.reshape(len(values), -1)
        if rows.dtype.kind == "f" and not (finite := np.isfinite(rows)).all():
            self.not_finite += int((~finite).sum())
            rows = rows[finite.all(axis=1)]
        if not len(rows):
            return
        low, high = rows.min(axis=0), rows.max(axis=0)
        mean = rows.mean(axis=0, dtype=np.float64)
        square = rows.var(axis=0, dtype=np.float64) * len(rows)
        if not self.count:
            self.count, self.low, self.high, self.mean, self.square = len(rows), low, high, mean, square
            return
        total = self.count + len(rows)
        delta = mean - self.mean
        self.square = self.square + square + delta**2 * (self.count * len(rows) / total)
        self.mean = self.mean + delta * (len(rows) / total)
        self.low, self.high, self.count = np.minimum(self.low, low), np.maximum(self.high, high), total


@dataclass
class Info:
    """The counts of a dataset; arrays have an entry an episode, in the order of the source."""

    path: str
    format: str
    alignment: str
    observations: dict[str, Stats]
    actions: Stats
    action_counts: np.ndarray | None  # (n,) of a Discrete action, else None
    rewards: Stats
    lengths: np.ndarray  # transitions
    returns: np.ndarray  # sums of rewards
    terminated: int  # episodes
    truncated: int  # episodes that are not terminated
    rates: dict[float, int]  # steps a second -> episodes; without unknown ones
    bytes: int  # of the arrays, uncompressed
    seconds: float  # of all steps whose rate is known

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The number of transitions."""
        return int(self.lengths.sum())


def describe_dataset(source: Source) -> Info:
    """Count everything in one pass, one episode in memory at a time.

    Raises:
        UserError: where an episode cannot be read.
    """
    leaf = source.action_space
    counted = leaf["type"] == "Discrete" and leaf["n"] <= MOST_COUNTED
    info = Info(
        path=str(source.path),
        format=source.format,
        alignment=source.alignment,
        observations={key: Stats(space) for key, space in source.observation_space.items()},
        actions=Stats(leaf),
        action_counts=np.zeros(leaf["n"], np.int64) if counted else None,
        rewards=Stats({"type": "Box", "shape": [], "dtype": "float64"}),
        lengths=np.zeros(0, np.int64),
        returns=np.zeros(0),
        terminated=0,
        truncated=0,
        rates={},
        bytes=0,
        seconds=0.0,
    )
    lengths: list[int] = []
    returns: list[float] = []
    for _, episode in source.episodes():
        lengths.append(len(episode))
        returns.append(float(np.sum(episode.rewards, dtype=np.float64)))
        _count(info, episode)
    info.lengths, info.returns = np.asarray(lengths, np.int64), np.asarray(returns)
    return info


def _count(info: Info, episode: Episode) -> None:
    for key, stats in info.observations.items():
        stats.add(episode.observations[key])
    info.actions.add(episode.actions)
    info.rewards.add(episode.rewards)
    if info.action_counts is not None:
        n = len(info.action_counts)
        taken = episode.actions.reshape(-1).astype(np.int64) - info.actions.leaf.get("start", 0)
        info.action_counts += np.bincount(taken[(taken >= 0) & (taken < n)], minlength=n)
    info.terminated += episode.terminated
    info.truncated += episode.truncated and not episode.terminated
    arrays = [*episode.observations.values(), episode.actions, episode.rewards]
    info.bytes += sum(array.nbytes for array in arrays)
    if not math.isnan(episode.rate):
        info.rates[episode.rate] = info.rates.get(episode.rate, 0) + 1
        info.seconds += len(episode) / episode.rate


def info_table(info: Info) -> list[tuple[str, str]]:
    """Rows (name, value) to print, in plain text."""
    rows = [("path", info.path), ("format", info.format), ("alignment of the file", info.alignment)]
    rows += [("episodes", f"{info.episodes:,}"), ("steps", f"{info.steps:,}")]
    if info.episodes:
        low, middle, high = np.quantile(info.lengths, [0, 0.5, 1])
        rows.append(("steps an episode", f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"))
        share = 100 / info.episodes
        left = info.episodes - info.terminated - info.truncated
        ends = f"{share * info.terminated:.0f}% terminated, {share * info.truncated:.0f}% truncated"
        rows.append(("ends", ends + (f", {share * left:.0f}% neither" if left else "")))
    rows.append(("size in memory", _size(info.bytes)))
    rates = ", ".join(f"{rate:g}/s ({count} episodes)" for rate, count in sorted(info.rates.items())[:SHOWN])
    rows.append(("sampling rate", rates or "not declared"))
    if info.seconds:
        rows.append(("time span", _span(info.seconds)))
    for key, stats in info.observations.items():
        rows += _entries(f"observation {key}", stats)
    rows += _entries("action", info.actions)
    if info.action_counts is not None:
        shares = 100 * info.action_counts / max(info.action_counts.sum(), 1)
        start = info.actions.leaf.get("start", 0)
        told = ", ".join(f"{start + i}: {share:.0f}%" for i, share in enumerate(shares[: 2 * SHOWN]))
        rows.append(("actions taken", told + (", ..." if len(shares) > 2 * SHOWN else "")))
    if info.rewards.count:
        rows.append(("reward a step", _range(info.rewards.low, info.rewards.mean, info.rewards.high, 0)))
    finite = info.returns[np.isfinite(info.returns)]
    if len(finite):
        rows.append(("return an episode", f"{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}"))
    return rows


def _entries(title: str, stats: Stats) -> list[tuple[str, str]]:
    leaf = stats.leaf
    match leaf["type"]:
        case "Discrete":
            kind = f"one of {leaf['n']}"
        case "MultiDiscrete":
            kind = f"of {leaf['nvec']} values"
        case "MultiBinary":
            kind = f"{leaf['shape']} bits"
        case _:
            kind = f"{'x'.join(map(str, leaf['shape'])) or 'a number'}, {leaf['dtype']}"
    if image_shape(leaf):
        kind += ", an image"
    rows = [(title, kind + (f"; {stats.not_finite:,} values are not finite" if stats.not_finite else ""))]
    if not stats.count or leaf["type"] in ("Discrete", "MultiDiscrete", "MultiBinary"):
        return rows
    shown = min(len(stats.mean), SHOWN)
    for i in range(shown):
        name = "  all pixels" if image_shape(leaf) else f"  entry {i}"
        rows.append((name, _range(stats.low, stats.mean, stats.high, i) + f", std {stats.std[i]:.4g}"))
    if len(stats.mean) > shown:
        rows.append(("  ...", f"{len(stats.mean) - shown} more entries"))
    return rows


def _range(low: np.ndarray, mean: np.ndarray, high: np.ndarray, i: int) -> str:
    return f"{low[i]:.4g} to {high[i]:.4g}, mean {mean[i]:.4g}"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _span(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


def contact_sheet(source: Source, info: Info) -> Figure:
    """Some episodes at a glance: frames, or curves of the first entries and actions; lengths and returns of all.

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
    _histogram(axes[0], info.lengths, "steps an episode")
    _histogram(axes[1], info.returns[np.isfinite(info.returns)], "return an episode")
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
    """A frame as (H, W) or (H, W, 3); of other numbers of channels the last one (the newest of a stack)."""
    if frame.ndim == 2:
        return frame
    if leaf["shape"][-1] > 16:
        frame = np.moveaxis(frame, 0, -1)
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
    grid[0, 0].set_title(f"observation {key}{more}", fontsize=10, color=INK, loc="left")
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
        note = f"median {np.median(values):.4g}"
        axes.set_title(f"{title} ({note})", fontsize=10, color=INK, loc="left")
    axes.set_ylabel("episodes", fontsize=9, color=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _tidy(axes)


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of 10 to 40 bins; whole numbers apart where all values are whole."""
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
