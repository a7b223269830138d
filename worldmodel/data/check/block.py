"""Blocks: consecutive episodes with their arrays joined, since a call of numpy takes as long as a short episode."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worldmodel.data.check.hashes import mixed, row_hashes
from worldmodel.data.episode import Episode, Source
from worldmodel.data.shards import num_bytes

AT_ONCE = 8 << 20  # bytes of short episodes taken together


@dataclass(frozen=True)
class Block:
    """E consecutive episodes: F observations of all, one after the other, and the S transitions between them."""

    first: int  # the number of its first episode in the dataset
    names: list[str]
    lengths: np.ndarray  # (E,) int64, T of each
    observations: dict[str, np.ndarray]  # key -> (F, ...)
    actions: np.ndarray  # (S, ...)
    rewards: np.ndarray  # (S,)
    terminated: np.ndarray  # (E,) bool
    truncated: np.ndarray  # (E,) bool
    rates: np.ndarray  # (E,) float64, NaN where unknown

    @cached_property
    def starts(self) -> np.ndarray:
        """(E,) the row of each first observation."""
        return np.cumsum(self.lengths + 1) - self.lengths - 1

    @cached_property
    def lasts(self) -> np.ndarray:
        """(E,) the row of each last observation."""
        return self.starts + self.lengths

    @cached_property
    def steps(self) -> np.ndarray:
        """(E,) the row of each first transition."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def frame_episodes(self) -> np.ndarray:
        """(F,) the episode, within the block, of each observation."""
        return np.repeat(np.arange(len(self.names)), self.lengths + 1)

    @cached_property
    def step_episodes(self) -> np.ndarray:
        """(S,) likewise of each transition."""
        return np.repeat(np.arange(len(self.names)), self.lengths)

    @cached_property
    def before(self) -> np.ndarray:
        """(S,) the row of the observation that each transition leaves; it leads to the next row."""
        return np.delete(np.arange(self.lasts[-1] + 1), self.lasts)

    @cached_property
    def hashes(self) -> dict[str, np.ndarray]:
        """Key -> (F,) uint64: a hash of each of its rows."""
        return {key: row_hashes(values) for key, values in self.observations.items()}

    @cached_property
    def frames(self) -> np.ndarray:
        """(F,) uint64: a hash of each observation, all keys together."""
        return mixed([*self.hashes.values()])

    def episodes(self, rows: np.ndarray, of_steps: bool = False) -> np.ndarray:
        """Rows of observations (or of transitions) -> their episodes within the block."""
        return (self.step_episodes if of_steps else self.frame_episodes)[rows]

    def where(self, row: int, of_steps: bool = False) -> str:
        """`data.h5, episode 3, step 7`: the place of an observation (or of a transition)."""
        episode = int(self.episodes(np.asarray(row), of_steps))
        return f"{self.names[episode]}, step {row - int((self.steps if of_steps else self.starts)[episode])}"


def blocks(source: Source) -> Iterator[Block]:
    """All episodes of a source, in blocks of about AT_ONCE bytes, or of a single longer episode."""
    waiting: list[tuple[str, Episode]] = []
    first = size = 0
    for name, episode in source.episodes():
        if waiting and (size + num_bytes(episode) > AT_ONCE or _form(episode) != _form(waiting[0][1])):
            yield _joined(first, waiting)
            first, waiting, size = first + len(waiting), [], 0
        waiting.append((name, episode))
        size += num_bytes(episode)
    if waiting:
        yield _joined(first, waiting)


def _form(episode: Episode) -> list[object]:
    """The keys, shapes and types that episodes must share to be joined."""
    arrays = {**episode.observations, "": episode.actions}
    return [(key, values.shape[1:], values.dtype) for key, values in arrays.items()]


def _joined(first: int, named: list[tuple[str, Episode]]) -> Block:
    names, episodes = zip(*named, strict=True)

    def join(parts: list[np.ndarray]) -> np.ndarray:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return Block(
        first,
        list(names),
        np.array([len(e) for e in episodes]),
        {key: join([e.observations[key] for e in episodes]) for key in episodes[0].observations},
        join([e.actions for e in episodes]),
        join([e.rewards for e in episodes]),
        np.array([e.terminated for e in episodes]),
        np.array([e.truncated for e in episodes]),
        np.array([e.rate for e in episodes]),
    )
