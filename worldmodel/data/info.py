"""What a dataset holds: counts and ranges from one pass, and a table of them."""

import math
from dataclasses import dataclass, field

import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.spaces import OBSERVATION, Json, image_shape

MOST_COUNTED = 1024  # discrete actions that are counted one by one
SHOWN = 6  # entries listed
BLOCK = 256  # rows summarised at once, since a video as float64 is eight times as large


@dataclass
class Stats:
    """Running statistics of values (N, ...), per entry; of images over all pixels."""

    leaf: Json
    count: int = 0
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sum of squared deviations
    not_finite: int = 0  # values that are NaN or infinite

    @property
    def std(self) -> np.ndarray:
        """Standard deviation."""
        return np.sqrt(self.square / max(self.count, 1))

    def add(self, values: np.ndarray) -> None:
        """Take values (N, ...); rows with NaN or infinite values are left out."""
        for begin in range(0, len(values), BLOCK):
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
    """Counts and ranges of a dataset; arrays have one entry per episode, in the order of the source."""

    path: str
    format: str
    alignment: str
    observations: dict[str, Stats]
    actions: Stats
    action_counts: np.ndarray | None  # (n,) of a Discrete action, else None
    rewards: Stats = field(default_factory=lambda: Stats({"type": "Box", "shape": [], "dtype": "float64"}))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # transitions
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sums of the rewards
    terminated: int = 0  # episodes
    truncated: int = 0  # episodes that are truncated and not terminated
    rates: dict[float, int] = field(default_factory=dict)  # steps per second -> episodes; known rates only
    bytes: int = 0  # of the arrays, uncompressed
    seconds: float = 0.0  # of all steps whose rate is known

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The number of transitions."""
        return int(self.lengths.sum())


def describe_dataset(source: Source) -> Info:
    """Summarise a dataset in one pass, with one episode in memory at a time.

    Raises:
        UserError: if an episode cannot be read.
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
        rows.append(("steps per episode", f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"))
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
        rows += _entries(shown_key(key), stats)
    rows += _entries("action", info.actions)
    if info.action_counts is not None:
        shares = 100 * info.action_counts / max(info.action_counts.sum(), 1)
        start = info.actions.leaf.get("start", 0)
        listed = ", ".join(f"{start + i}: {share:.0f}%" for i, share in enumerate(shares[: 2 * SHOWN]))
        rows.append(("actions taken", listed + (", ..." if len(shares) > 2 * SHOWN else "")))
    if info.rewards.count:
        rows.append(("reward per step", _range(info.rewards.low, info.rewards.mean, info.rewards.high, 0)))
    finite = info.returns[np.isfinite(info.returns)]
    if len(finite):
        rows.append(("return per episode", f"{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}"))
    return rows


def _entries(title: str, stats: Stats) -> list[tuple[str, str]]:
    leaf = stats.leaf
    match leaf["type"]:
        case "Discrete":
            return [(title, f"one of {leaf['n']}")]
        case "MultiDiscrete":
            return [(title, f"of {leaf['nvec']} values")]
        case "MultiBinary":
            return [(title, f"{leaf['shape']} bits")]
    kind = f"{'x'.join(map(str, leaf['shape'])) or 'a number'}, {leaf['dtype']}"
    kind += ", an image" * (image_shape(leaf) is not None)
    rows = [(title, kind + (f"; {stats.not_finite:,} values are not finite" if stats.not_finite else ""))]
    if not stats.count:
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


def shown_key(key: str) -> str:
    """An observation key as a heading."""
    return key if key == OBSERVATION else f"observation {key}"
