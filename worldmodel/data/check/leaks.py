"""Rewards, and flags of an episode's beginning or end, among the observations."""

from collections.abc import Iterator

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.episode import Source
from worldmodel.data.spaces import image_shape

FEWEST = 3  # episodes
REWARDS = ("the reward of the step before it", "the reward of the step after it")
FLAGS = (
    "a flag of the first observation of an episode",
    "a flag of the last observation of an episode",
    "a flag of the last observation but one of an episode",
    "the flag of a terminal state",
    "the flag of an episode that was cut",
)


class Leaks:
    """The check for entries of observations that are something else, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        self.keys = [key for key, leaf in source.observation_space.items() if image_shape(leaf) is None]
        self.left: dict[str, np.ndarray] = {}  # key -> (REWARDS + FLAGS, entries): what each may still be
        self.rewards = np.array([np.inf, -np.inf])  # the range
        self.longest = 0
        self.seen = np.zeros(3, np.int64)  # episodes, terminated ones, cut ones

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        self.rewards = np.array([min(self.rewards[0], block.rewards.min()), max(self.rewards[1], block.rewards.max())])
        self.seen += [len(block.names), block.terminated.sum(), (block.truncated & ~block.terminated).sum()]
        self.longest = max(self.longest, int(block.lengths.max()))
        for key in self.keys:
            if key not in block.observations:
                continue
            values = block.observations[key].reshape(len(block.frames), -1)
            left = self.left.setdefault(key, np.ones((len(REWARDS) + len(FLAGS), values.shape[1]), bool))
            for kind, (rows, expected) in enumerate(_expected(block)):
                if len(entries := np.flatnonzero(left[kind])):
                    # a few rows tell most of them apart
                    few = _same(values[rows[:64]][:, entries], expected[:64])
                    some = entries[few]
                    left[kind] = False
                    left[kind, some] = _same(values[rows][:, some], expected) if len(some) else True

    def findings(self, recording: Recording) -> list[Finding]:
        """One for each key and each thing that its entries are."""
        episodes, terminated, cut = self.seen
        told = [self.rewards[1] > self.rewards[0]] * 2
        told += [episodes >= FEWEST and self.longest > 2] * 3
        told += [terminated >= FEWEST, cut >= FEWEST and terminated > 0]
        path, findings = str(recording.source.path), []
        for key, left in self.left.items():
            for kind, (what, is_told) in enumerate(zip(REWARDS + FLAGS, told, strict=True)):
                if not is_told or not left[kind].any():
                    continue
                check = "reward among the observations" if kind < len(REWARDS) else "flag among the observations"
                which = ", ".join(map(str, np.flatnonzero(left[kind])[:8]))
                what = f"observation {key!r}: entry {which} is {what}, throughout"
                remedy = "leave it out, unless who acts will see it too: a model learns to copy it, and who ends when"
                findings.append(Finding("warning", check, f"{path}, {key}", what, remedy, int(left[kind].sum())))
                left[kind + 1 :, left[kind]] = False  # called one thing
        return findings


def _expected(block: Block) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows, and what an entry holds there that is one of REWARDS or FLAGS."""
    yield block.before + 1, block.rewards
    yield block.before, block.rewards
    every = np.arange(len(block.frames))
    for places in (
        block.starts,
        block.lasts,
        block.lasts - 1,
        block.lasts[block.terminated],
        block.lasts[block.truncated & ~block.terminated],
    ):
        flags = np.zeros(len(every))
        flags[places] = 1
        yield every, flags


def _same(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(n,) whether the columns of values (N, n) are what is expected (N,), as float32 holds it."""
    return (values.astype(np.float32) == expected.astype(np.float32)[:, None]).all(axis=0)
