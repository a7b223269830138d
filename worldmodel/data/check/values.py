"""Values that cannot be right or carry no information: NaN, constants, values out of bounds, black frames."""

from dataclasses import dataclass, field

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Places, Recording
from worldmodel.data.episode import Source
from worldmodel.data.resolution import REMEDY, SHIFTED, Resolution, far_away, too_small
from worldmodel.data.spaces import Json, image_shape

BLACK = 8  # of 255: no pixel of a black frame is brighter
TOLERANCE = 1e-3  # by which a value may leave its bounds, of their width
MOST_ACTIONS = 1024  # discrete actions that are counted one by one
FLAT = 1e-7  # of its magnitude: a float entry that moves less is constant
SHOWN = 8  # entries named in a message


@dataclass
class Stream:
    """The range and the faults of one observation key, of the actions, or of the rewards."""

    title: str
    leaf: Json
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    steps: int = 0
    broken: Places = field(default_factory=Places)
    outside: Places = field(default_factory=Places)
    black: Places = field(default_factory=Places)
    black_frames: int = 0
    resolution: Resolution = field(init=False)
    bounds: tuple[np.ndarray, np.ndarray] | None = field(init=False)

    def __post_init__(self) -> None:
        self.resolution, self.bounds = Resolution(self.leaf), _bounds(self.leaf)

    @property
    def is_image(self) -> bool:
        return image_shape(self.leaf) is not None

    def add(self, block: Block, values: np.ndarray, of_steps: bool) -> None:
        """Take the values (N, ...) of a block."""
        self.steps += len(values)
        self.resolution.add(values)
        usable = values
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            rows = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
            bad = np.argwhere(~finite)[0]
            self.broken.add(block, rows, f"{values[tuple(bad)]}{_entry(bad)}", of_steps)
            usable = np.delete(values, rows, axis=0)
        if not len(usable):
            return
        low, high = usable.min(axis=0), usable.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        bounds = self.bounds
        if bounds is not None and (np.any(low < bounds[0]) or np.any(high > bounds[1])):
            outside = np.isfinite(values) & ((values < bounds[0]) | (values > bounds[1]))
            bad = np.argwhere(outside)[0]
            rows = np.flatnonzero(outside.reshape(len(values), -1).any(axis=1))
            self.outside.add(block, rows, f"{values[tuple(bad)]:g}{_entry(bad)}", of_steps)
        if self.is_image and (dark := (values.reshape(len(values), -1).max(axis=1) <= BLACK)).any():
            self.black.add(block, np.flatnonzero(dark), "", of_steps)
            self.black_frames += int(dark.sum())

    def constant(self) -> np.ndarray:
        """Flat indices of the entries that never change; for images the one index 0 if no pixel does."""
        if self.low is None or self.high is None or self.steps < 2:
            return np.zeros(0, int)
        low, high = np.ravel(self.low).astype(float), np.ravel(self.high).astype(float)
        flat = high - low <= FLAT * np.maximum(np.abs(low), np.abs(high))
        far, small, _ = self.resolution.unresolved()
        flat[[*far, *small]] = False
        if self.is_image:
            return np.zeros(int(flat.all()), int)
        return np.flatnonzero(flat)


def _bounds(leaf: Json) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the greatest valid value, with a tolerance for a Box; None if nothing can be outside."""
    match leaf["type"]:
        case "Discrete":
            start = leaf.get("start", 0)
            return np.asarray(start), np.asarray(start + leaf["n"] - 1)
        case "MultiDiscrete":
            return np.zeros(np.shape(leaf["nvec"])), np.asarray(leaf["nvec"]) - 1
        case "MultiBinary":
            return np.asarray(0), np.asarray(1)
    low, high = _declared(leaf)
    if not (np.isfinite(low).any() or np.isfinite(high).any()) or leaf["dtype"] == "uint8":
        return None
    ends = [np.where(np.isfinite(end), np.abs(end), 0.0) for end in (low, high)]
    width = np.where(np.isfinite(high) & np.isfinite(low), high - low, np.maximum(*ends))
    return low - TOLERANCE * width - 1e-9, high + TOLERANCE * width + 1e-9


def _declared(leaf: Json) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a Box, infinite where they are null."""
    low, high = (np.asarray(leaf.get(which), dtype=float) for which in ("low", "high"))  # null becomes NaN
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    return (low.reshape(leaf["shape"]) if low.ndim else low), (high.reshape(leaf["shape"]) if high.ndim else high)


class Values:
    """The checks of single values, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        self.observations = {
            key: Stream(f"observation {key!r}", leaf) for key, leaf in source.observation_space.items()
        }
        self.actions = Stream("actions", source.action_space)
        self.rewards = Stream("rewards", {"type": "Box", "shape": [], "dtype": "float64"})
        self.taken: list[np.ndarray] = _counters(source.action_space)

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        for key, stream in self.observations.items():
            if key in block.observations:
                stream.add(block, block.observations[key], False)
        self.actions.add(block, block.actions, True)
        self.rewards.add(block, block.rewards, True)
        if self.taken:
            start = self.actions.leaf.get("start", 0)
            columns = block.actions.reshape(len(block.actions), -1).T
            for counts, column in zip(self.taken, columns, strict=False):
                inside = column[(column >= start) & (column < start + len(counts))].astype(np.int64) - start
                counts += np.bincount(inside, minlength=len(counts))

    def findings(self, recording: Recording) -> list[Finding]:
        """The faults of each stream, then actions that were never taken."""
        path = str(recording.source.path)
        findings = []
        for stream in (*self.observations.values(), self.actions, self.rewards):
            findings += _broken(stream) + _outside(stream, stream is self.actions) + _black(stream)
            findings += _unresolved(stream, path, stream.title.startswith("observation"))
            if stream is not self.rewards:
                findings += _constant(stream, path)
        return findings + self._never_taken(path)

    def _never_taken(self, path: str) -> list[Finding]:
        findings = []
        start = self.actions.leaf.get("start", 0)
        for column, counts in enumerate(self.taken):
            never = np.flatnonzero(counts == 0)
            if 0 < len(never) < len(counts) - 1:  # if a single one is left, the entry is constant
                which = f" of entry {column}" if len(self.taken) > 1 else ""
                what = f"of {len(counts)} actions{which}, {len(never)} never occur: {_list(never + start)}"
                remedy = "record episodes that take them, or declare fewer: their effect cannot be learned"
                findings.append(Finding("warning", "action never taken", path, what, remedy, len(never)))
        return findings


def _counters(leaf: Json) -> list[np.ndarray]:
    sizes = {"Discrete": [leaf.get("n", 0)], "MultiDiscrete": np.ravel(leaf.get("nvec", [])).tolist()}
    counted = sizes.get(leaf["type"], [])
    return [np.zeros(n, np.int64) for n in counted] if max(counted, default=0) <= MOST_ACTIONS else []


def _broken(stream: Stream) -> list[Finding]:
    if not stream.broken.count:
        return []
    what = f"{stream.title}: {stream.broken.detail}; {stream.broken.count} episodes hold NaN or infinite values"
    remedy = "drop these episodes, cut them before this step, or record them again: one NaN ends training"
    return [Finding("error", "not finite", stream.broken.first, what, remedy, stream.broken.count)]


def _outside(stream: Stream, is_action: bool) -> list[Finding]:
    if not stream.outside.count:
        return []
    discrete = stream.leaf["type"] != "Box"
    what = f"{stream.title}: the value {stream.outside.detail} is outside the declared {_range(stream.leaf)}"
    remedy = "declare the true bounds"
    if is_action:
        remedy += ", or store the actions as the environment carried them out (clipped)"
    if discrete:
        remedy = "declare the true number of values (and `start`), or correct the values"
    level = "error" if is_action or discrete else "warning"
    what += f"; {stream.outside.count} episodes hold such values"
    return [Finding(level, "out of bounds", stream.outside.first, what, remedy, stream.outside.count)]


def _black(stream: Stream) -> list[Finding]:
    frames = stream.black_frames
    if not frames or stream.constant().size:
        return []
    what = f"{stream.title}: {frames:,} of {stream.steps:,} frames are black, in {stream.black.count} episodes"
    remedy = "look at them (a camera or renderer that had not started?) and drop or cut these episodes"
    return [Finding("warning", "black frames", stream.black.first, what, remedy, frames)]


def _unresolved(stream: Stream, path: str, shifted: bool) -> list[Finding]:
    """What float32 does not resolve; `shifted`: the program subtracts a constant where that helps."""
    far, small, _ = stream.resolution.unresolved()
    found = []
    if far:
        remedy = f"none: {SHIFTED} (other programs lose it)" if shifted else "give it less a constant"
        found.append(Finding("warning", "resolution", path, far_away(stream.title, far), remedy, len(far)))
    if small:
        found.append(Finding("warning", "resolution", path, too_small(stream.title, small), REMEDY, len(small)))
    return found


def _constant(stream: Stream, path: str) -> list[Finding]:
    flat = stream.constant()
    if not flat.size:
        return []
    if stream.is_image:
        what, remedy = f"{stream.title}: all frames are the same", "check the camera; leave this key out"
    else:
        what = f"{stream.title}: {len(flat)} entries never change: {_list(flat)}"
        remedy = "leave them out, or check that they were recorded: they carry no information"
    return [Finding("warning", "constant", path, what, remedy, len(flat))]


def _range(leaf: Json) -> str:
    low, high = _declared(leaf) if leaf["type"] == "Box" else _bounds(leaf) or (np.zeros(1), np.ones(1))
    return f"bounds {low.min():g} to {high.max():g}"


def _entry(place: np.ndarray) -> str:
    """The entry at (step, entry ...), in words; empty where a step is one number."""
    return f" in entry {', '.join(map(str, place[1:].tolist()))}" if len(place) > 1 else ""


def _list(indices: np.ndarray) -> str:
    more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
    return ", ".join(map(str, indices[:SHOWN].tolist())) + more
