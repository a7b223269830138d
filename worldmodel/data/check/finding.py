"""What a check is, what it gets (blocks of episodes, then a sample of them all) and what it returns (findings)."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.fragments import Fragments
from worldmodel.data.episode import Source

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault of a dataset, and what to do about it."""

    level: Level
    check: str  # the kind of fault, in a few words
    where: str  # the first place: file, episode, step
    what: str
    remedy: str
    count: int  # of the episodes, entries or pairs that `what` speaks of


@dataclass
class Places:
    """Where a fault appears first, and the number of episodes that have it."""

    first: str = ""
    count: int = 0
    detail: str = ""

    def add(self, block: Block, rows: np.ndarray, detail: str = "", of_steps: bool = False) -> None:
        """Take the faulty rows (of observations, or of transitions) of a block, in order; `detail` is of the first."""
        if len(rows) and not self.count:
            self.first, self.detail = block.where(int(rows[0]), of_steps), detail
        self.count += len(np.unique(block.episodes(rows, of_steps)))


@dataclass
class Recording:
    """What is known once all episodes are in."""

    source: Source
    names: list[str] = field(default_factory=list)  # of all episodes
    splits: dict[str, np.ndarray] = field(default_factory=dict)  # split -> indices of its episodes; empty: unknown
    fragments: Fragments = field(default_factory=Fragments.none)  # of random episodes


class Check(Protocol):
    """Looks for one kind of fault in a stream of episodes."""

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        ...

    def findings(self, recording: Recording) -> list[Finding]:
        """The faults found, once all episodes are in."""
        ...
