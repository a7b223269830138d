"""What a check is, what it gets (episodes, and a sample of their transitions) and what it returns (findings)."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.spaces import Json, exact, features, image_shape, images_of, is_continuous, num_features

FRAGMENT = 512  # steps; a longer episode is kept in pieces that can be dropped one by one
WIDEST = 64  # entries kept of a wide vector
SIDE = 8  # of the grey thumbnail that stands for an image
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


class Check(Protocol):
    """Looks for one kind of fault in a stream of episodes."""

    def add(self, name: str, episode: Episode, frames: np.ndarray) -> None:
        """Take one episode; `frames` (T + 1,) uint64 are hashes of its observations."""
        ...

    def findings(self, recording: "Recording") -> list[Finding]:
        """The faults found, once all episodes are in."""
        ...


@dataclass(frozen=True)
class Fragment:
    """Consecutive steps of one episode; `actions[t]` follows `observations[t]`."""

    episode: int
    observations: np.ndarray  # (L + 1, n) float32
    actions: np.ndarray  # (L, m) float32, one-hot where discrete


class Recording:
    """The names and splits of all episodes, and random fragments of them: about `max_steps` transitions at most."""

    def __init__(self, source: Source, max_steps: int) -> None:
        self.source, self.max_steps = source, max_steps
        self.names: list[str] = []
        self.splits: dict[str, np.ndarray] = {}  # split -> indices of its episodes; empty: unknown
        self.fragments: list[Fragment] = []
        self._first: dict[str, np.ndarray] = {}  # key -> an observation
        self._steps, self._chance, self._rng = 0, 1.0, np.random.default_rng(0)

    def add(self, name: str, episode: Episode) -> None:
        """Take the episode's fragments, each with the probability with which earlier fragments were kept."""
        self.names.append(name)
        for begin in range(0, len(episode), FRAGMENT):
            if self._rng.random() >= self._chance:
                continue
            end = min(begin + FRAGMENT, len(episode))
            fragment = self._fragment(len(self.names) - 1, episode, begin, end)
            if fragment is None:
                continue
            self.fragments.append(fragment)
            self._steps += end - begin
            if self._steps > self.max_steps:
                self._halve()

    def _fragment(self, index: int, episode: Episode, begin: int, end: int) -> Fragment | None:
        """None if the values cannot be used, which other checks report."""
        spaces = self.source.observation_space
        try:
            frames = {key: episode.observations[key][begin : end + 1] for key in spaces}
            parts = [vectors(self._near(key, frames[key]), leaf) for key, leaf in spaces.items()]
            actions = vectors(episode.actions[begin:end], self.source.action_space)
        except (ValueError, KeyError):
            return None
        observations = np.concatenate(parts, axis=1)
        if not (np.isfinite(observations).all() and np.isfinite(actions).all()):
            return None
        return Fragment(index, observations, actions)

    def _near(self, key: str, values: np.ndarray) -> np.ndarray:
        """Values less the first that were seen, since float32 may not resolve them."""
        leaf = self.source.observation_space[key]
        if not is_continuous(leaf) or image_shape(leaf) is not None or not len(values):
            return values
        return exact(values) - self._first.setdefault(key, exact(values[0]))

    def _halve(self) -> None:
        kept = np.flatnonzero(self._rng.random(len(self.fragments)) < 0.5)
        self.fragments = [self.fragments[i] for i in kept] or self.fragments[:1]
        self._steps = sum(len(fragment.actions) for fragment in self.fragments)
        self._chance /= 2


def vectors(values: np.ndarray, leaf: Json) -> np.ndarray:
    """Values (N, ...) of a leaf as float32 (N, at most 64): grey thumbnails of images, else evenly picked entries."""
    if image_shape(leaf) is not None:
        return _thumbnails(images_of(values, leaf).mean(axis=3, dtype=np.float32))
    if is_continuous(leaf) and (width := num_features(leaf)) > WIDEST:
        picked = np.linspace(0, width - 1, WIDEST).astype(int)
        return values.reshape(len(values), -1)[:, picked].astype(np.float32)
    return features(values, leaf)[:, :WIDEST]


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 blocks of grey images (N, H, W), as (N, 64)."""
    rows, columns = (np.arange(SIDE) * size // SIDE for size in images.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(images, rows, axis=1), columns, axis=2)
    ones = np.ones((1, *images.shape[1:]), dtype=np.float32)
    areas = np.add.reduceat(np.add.reduceat(ones, rows, axis=1), columns, axis=2)
    return (sums / areas).reshape(len(images), -1)
