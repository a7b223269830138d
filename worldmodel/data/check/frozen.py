"""Stretches in which a camera's frame or a sensor's value stands still while everything else moves."""

from dataclasses import dataclass, field

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.episode import Source
from worldmodel.data.spaces import Json, image_shape

RUN = 8  # steps
RARE = 0.01  # share of the other steps in which it may stand still
MOVING = 0.5  # share of what usually moves, or of the steps with another action, that must move meanwhile


@dataclass
class Stream:
    """The n entries of a key (one of an image), and where they stand still."""

    leaf: Json
    steps: int = 0
    still: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # (n,) steps
    low: np.ndarray = field(default_factory=lambda: np.full(1, np.inf))
    high: np.ndarray = field(default_factory=lambda: np.full(1, -np.inf))
    runs: list[tuple[int, int, float, str]] = field(default_factory=list)  # entry, steps, value, place


class Frozen:
    """The check for frozen stretches, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        spaces = source.observation_space.items()
        self.streams = {key: Stream(leaf) for key, leaf in spaces if leaf["type"] == "Box"}

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        streams = {key: stream for key, stream in self.streams.items() if key in block.observations}
        values = {key: _values(block, key, stream.leaf) for key, stream in streams.items()}
        same = {key: rows[block.before + 1] == rows[block.before] for key, rows in values.items()}
        if not same:
            return
        moves = np.sum([(~part).sum(axis=1) for part in same.values()], axis=0)
        actions = block.actions.reshape(len(block.actions), -1)
        acts = np.append(False, (actions[1:] != actions[:-1]).any(axis=1))
        usual = np.median(moves)
        for key, stream in streams.items():
            stream.steps += len(moves)
            stream.still = stream.still + same[key].sum(axis=0)
            if image_shape(stream.leaf) is None:
                stream.low = np.fmin(stream.low, values[key].min(axis=0))
                stream.high = np.fmax(stream.high, values[key].max(axis=0))
            for entry, begin, end in _runs(same[key], block):
                busy = max(1.0, MOVING * usual)
                if (moves[begin:end].mean() >= busy) or acts[begin:end].mean() >= MOVING:
                    value = float(values[key][block.before[begin], entry])
                    stream.runs.append((entry, end - begin, value, block.where(begin, of_steps=True)))

    def findings(self, recording: Recording) -> list[Finding]:
        """At most one for each key."""
        return [finding for key, stream in self.streams.items() for finding in _findings(key, stream)]


def _values(block: Block, key: str, leaf: Json) -> np.ndarray:
    """(F, n) of a key; of an image, its hash."""
    if image_shape(leaf) is not None:
        return block.hashes[key][:, None]
    return block.observations[key].reshape(len(block.frames), -1)


def _runs(same: np.ndarray, block: Block) -> list[tuple[int, int, int]]:
    """(entry, first step, step after the last) of each run of RUN or more steps within an episode."""
    entries = np.flatnonzero((same.sum(axis=0) >= RUN) & (same.mean(axis=0) < MOVING))
    spaced = np.zeros((len(entries), len(same) + len(block.names) + 1), np.int8)
    place = np.arange(len(same)) + block.step_episodes + 1  # with a gap before each episode
    spaced[:, place] = same[:, entries].T
    edges = np.diff(spaced, axis=1, append=0)
    of, begins = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    long = np.flatnonzero(ends - begins >= RUN)
    row = np.zeros(spaced.shape[1] + 1, np.int64)
    row[place] = np.arange(len(same))
    return [(int(entries[of[i]]), int(row[begins[i] + 1]), int(row[ends[i]]) + 1) for i in long]


def _findings(key: str, stream: Stream) -> list[Finding]:
    is_image = image_shape(stream.leaf) is not None
    frozen = np.zeros(len(stream.still))
    kept = []
    for entry, steps, value, place in stream.runs:
        if is_image or (value != 0 and stream.low[entry] < value < stream.high[entry]):  # no limit, and not at rest
            frozen[entry] += steps
            kept.append((entry, steps, place))
    rare = stream.still - frozen <= RARE * (stream.steps - frozen)
    kept = [run for run in kept if rare[run[0]]]
    if not kept:
        return []
    entry, steps, place = kept[0]
    title = f"observation {key!r}" + ("" if is_image else f", entry {entry},")
    what = f"{title} stands still for {steps} steps while the rest moves, or other actions are taken, and otherwise"
    what += f" changes all the time; {len(kept)} such stretches"
    remedy = "a frozen camera, encoder or connection? cut these stretches out, or leave the key out"
    return [Finding("warning", "frozen", place, what, remedy, len(kept))]
