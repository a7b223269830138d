"""A random sample of a dataset's transitions, as vectors, for the checks that fit a model of the dynamics."""

from dataclasses import dataclass, fields

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.episode import Source
from worldmodel.data.spaces import Json, exact, features, image_shape, images_of, is_continuous, num_features

FRAGMENT = 512  # steps; a longer episode is kept in pieces that can be dropped one by one
STRETCH = 1024  # steps of consecutive fragments that are kept or dropped together, so that neighbours stay neighbours
WIDEST = 64  # entries kept of a wide vector
FAR = 2**12  # from here on float32 may not resolve how values differ
SIDE = 8  # of the grey thumbnail that stands for an image


@dataclass(frozen=True)
class Fragments:
    """K fragments, each of consecutive steps of one episode, in the order of the dataset, with their arrays joined."""

    episodes: np.ndarray  # (K,) the number of each one's episode
    begins: np.ndarray  # (K,) its first step there
    whole: np.ndarray  # (K,) bool: it reaches to its episode's end
    lengths: np.ndarray  # (K,) L of each
    observations: np.ndarray  # (sum of L + 1, n) float32
    actions: np.ndarray  # (sum of L, m) float32, one-hot where discrete; action i of a fragment follows observation i

    @staticmethod
    def none() -> "Fragments":
        none, empty = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return Fragments(none, none, none, none, empty, empty)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def frames(self) -> np.ndarray:
        """(K,) the row of each one's first observation."""
        return np.cumsum(self.lengths + 1) - self.lengths - 1

    @property
    def steps(self) -> np.ndarray:
        """(K,) the row of each one's first action."""
        return np.cumsum(self.lengths) - self.lengths

    def of(self, places: np.ndarray | int) -> np.ndarray:
        """Rows of actions -> the fragments they lie in."""
        return np.searchsorted(self.steps, places, side="right") - 1

    def step(self, places: np.ndarray | int) -> np.ndarray:
        """Rows of actions -> the steps they are in their episodes."""
        of = self.of(places)
        return self.begins[of] + places - self.steps[of]

    def take(self, which: np.ndarray) -> "Fragments":
        """These fragments, by number, in this order."""
        lengths = self.lengths[which]
        frames, steps = ranges(self.frames[which], lengths + 1), ranges(self.steps[which], lengths)
        places = self.episodes[which], self.begins[which], self.whole[which]
        return Fragments(*places, lengths, self.observations[frames], self.actions[steps])

    def windows(self, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where `width` consecutive steps begin: the fragment, the row of the observation, and that of the action."""
        counts = np.maximum(self.lengths - width + 1, 0)
        of = np.repeat(np.arange(len(self)), counts)
        return of, ranges(self.frames, counts), ranges(self.steps, counts)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """All of start, start + 1, ..., for each start so many."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


def joined(parts: list[Fragments]) -> Fragments:
    """The fragments of all parts, in their order."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return Fragments.none()
    return Fragments(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Fragments)))


class Sample:
    """Collects random fragments of a stream of blocks: about `max_steps` transitions at most."""

    def __init__(self, source: Source, max_steps: int) -> None:
        self.source, self.max_steps = source, max_steps
        self._parts: list[Fragments] = []
        self._stretches: list[np.ndarray] = []  # of the fragments of each part
        self._kept = np.zeros(0, bool)  # stretch -> whether it is kept
        self._first: dict[str, np.ndarray] = {}  # key -> the first observation, 0 where it is not far from zero
        self._passed = self._steps = 0
        self._chance, self._rng = 1.0, np.random.default_rng(0)

    def add(self, block: Block) -> None:
        """Take the block's fragments, each with the probability with which earlier ones were kept."""
        counts = -(-block.lengths // FRAGMENT)
        episodes = np.repeat(np.arange(len(counts)), counts)
        begins = ranges(np.zeros_like(counts), counts) * FRAGMENT
        lengths = np.minimum(FRAGMENT, block.lengths[episodes] - begins)
        stretches = (self._passed + block.steps[episodes] + begins) // STRETCH
        new = int(stretches[-1]) + 1 - len(self._kept)
        self._kept = np.append(self._kept, self._rng.random(new) < self._chance)
        which = np.flatnonzero(self._kept[stretches])
        # a long episode, which may be a video, fragment by fragment
        for some in which.reshape(-1, 1) if len(counts) == 1 else [which]:
            part = self._fragments(block, episodes[some], begins[some], lengths[some])
            at = self._passed + block.steps[part.episodes - block.first] + part.begins
            self._parts.append(part)
            self._stretches.append(at // STRETCH)
            self._steps += int(part.lengths.sum())
        self._passed += int(block.lengths.sum())
        while self._steps > self.max_steps and self._kept.sum() > 1:
            self._halve()

    def fragments(self) -> Fragments:
        """The sample so far."""
        return joined(self._parts)

    def _fragments(self, block: Block, episodes: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> Fragments:
        """Without those whose values cannot be used, which other checks report."""
        whole = begins + lengths == block.lengths[episodes]
        frames = ranges(block.starts[episodes] + begins, lengths + 1)
        steps = ranges(block.steps[episodes] + begins, lengths)
        spaces = self.source.observation_space
        try:
            parts = [vectors(self._near(key, block.observations[key][frames]), leaf) for key, leaf in spaces.items()]
            actions = vectors(block.actions[steps], self.source.action_space)
        except (ValueError, KeyError):  # a value that its space does not have
            if len(lengths) == 1:
                return Fragments.none()
            each = [slice(i, i + 1) for i in range(len(lengths))]
            return joined([self._fragments(block, episodes[i], begins[i], lengths[i]) for i in each])
        made = Fragments(block.first + episodes, begins, whole, lengths, np.concatenate(parts, axis=1), actions)
        bad = np.zeros(len(made), bool)
        for values, counts in ((made.observations, lengths + 1), (made.actions, lengths)):
            finite = np.isfinite(values).all(axis=1)
            bad[np.repeat(np.arange(len(made)), counts)[~finite]] = True
        return made.take(np.flatnonzero(~bad)) if bad.any() else made

    def _near(self, key: str, values: np.ndarray) -> np.ndarray:
        """Values less the first that were seen, for entries that are far from zero."""
        leaf = self.source.observation_space[key]
        if not is_continuous(leaf) or image_shape(leaf) is not None or not len(values):
            return values
        if key not in self._first:
            first = exact(values[0])
            self._first[key] = np.where(np.abs(first.astype(float)) < FAR, np.zeros_like(first), first)
        first = self._first[key]
        return exact(values) - first if first.any() else values

    def _halve(self) -> None:
        self._kept &= self._rng.random(len(self._kept)) < 0.5
        if not self._kept.any():
            self._kept[np.concatenate(self._stretches)[0]] = True
        keep = [np.flatnonzero(self._kept[stretches]) for stretches in self._stretches]
        self._parts = [part.take(which) for part, which in zip(self._parts, keep, strict=True)]
        self._stretches = [stretches[which] for stretches, which in zip(self._stretches, keep, strict=True)]
        self._steps = sum(int(part.lengths.sum()) for part in self._parts)
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
