"""The episodes of a dataset as one table, a row per frame, so that a batch is one gather.

A row is float32, `[observation | reward | terminated | action]`: the vector part of the frame's observation, then the
reward of the step from it, whether that step led to a terminal state, and the action. Images lie in a table of their
own, uint8, channels last. An episode of T transitions has T + 1 rows; in the last, reward, end and action are zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from worldmodel.data import spaces
from worldmodel.data.episode import Episode
from worldmodel.data.rows import Rows
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError


@dataclass(frozen=True)
class Layout:
    """What the entries of an observation and of a row mean: vectors in the order of the keys, then images."""

    observation_space: dict[str, Json]
    action_space: Json

    @cached_property
    def images(self) -> dict[str, tuple[int, int, int]]:
        """key -> (H, W, C)."""
        shapes = {key: spaces.image_shape(leaf) for key, leaf in self.observation_space.items()}
        return {key: shape for key, shape in shapes.items() if shape is not None}

    @cached_property
    def vectors(self) -> dict[str, int]:
        """key -> number of entries, of everything that is no image."""
        leaves = self.observation_space.items()
        return {key: spaces.num_features(leaf) for key, leaf in leaves if key not in self.images}

    @property
    def vector_entries(self) -> list[str]:
        """(vector_dim,) names: key and index of each entry of the vector, less its origin if it has one."""
        names = [f"{key}[{i}]" for key, size in self.vectors.items() for i in range(size)]
        return [f"{name} - {at}" if at else name for name, at in zip(names, self.vector_origin, strict=True)]

    @property
    def origins(self) -> dict[str, list[int | float]]:
        """key -> what is subtracted from its entries before they become float32, of the keys where anything is."""
        return {key: leaf["origin"] for key, leaf in self.observation_space.items() if "origin" in leaf}

    def shifted(self, origins: dict[str, list[int | float]]) -> "Layout":
        """The same with these origins and no others."""
        leaves = {
            key: {name: value for name, value in leaf.items() if name != "origin"}
            | ({"origin": origins[key]} if key in origins else {})
            for key, leaf in self.observation_space.items()
        }
        return replace(self, observation_space=leaves)

    def difference(self, obs: np.ndarray) -> np.ndarray:
        """An observation (O,) in the units of the data, as `frames` would give it, (O,) float32."""
        return (spaces.exact(obs) - np.array(self.vector_origin + [0] * self.pixels, np.longdouble)).astype(np.float32)

    @property
    def vector_origin(self) -> list[int | float]:
        """(vector_dim,) what is subtracted from each entry of the vector before it becomes float32."""
        return [at for key, size in self.vectors.items() for at in self.origins.get(key, [0] * size)]

    @property
    def vector_dim(self) -> int:
        return sum(self.vectors.values())

    @property
    def pixels(self) -> int:
        return sum(h * w * c for h, w, c in self.images.values())

    @property
    def obs_dim(self) -> int:
        """O: entries of an observation, vectors and pixels together."""
        return self.vector_dim + self.pixels

    @property
    def action_dim(self) -> int:
        """A: entries of an action, one-hot where discrete."""
        return spaces.num_features(self.action_space)

    @property
    def row_dim(self) -> int:
        return self.vector_dim + 2 + self.action_dim

    def continuous(self) -> tuple[np.ndarray, bool]:
        """Which vector entries (vector_dim,), and whether actions, have a scale that normalisation should remove."""
        leaves = self.observation_space
        entries = [np.full(size, spaces.is_continuous(leaves[key])) for key, size in self.vectors.items()]
        return np.concatenate([np.zeros(0, bool), *entries]), spaces.is_continuous(self.action_space)

    def frames(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        """Observations, key -> (N, ...), as a model sees them, (N, O) float32: vectors, then pixels from 0 to 255."""
        leaves = self.observation_space
        vectors = [spaces.features(np.asarray(observations[key]), leaves[key]) for key in self.vectors]
        images = [spaces.images_of(np.asarray(observations[key]), leaves[key]) for key in self.images]
        flat = [image.reshape(len(image), -1).astype(np.float32) for image in images]
        parts = [*vectors, *flat]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def rows(self, episode: Episode, name: str) -> tuple[np.ndarray, np.ndarray]:
        """An episode's rows (T + 1, row_dim) float32 and images (T + 1, pixels) uint8; a UserError if it is invalid."""
        vectors = [self._features(episode, key, name) for key in self.vectors]
        steps = np.zeros((len(episode) + 1, 2 + self.action_dim), np.float32)
        steps[:-1, 0] = episode.rewards
        steps[-2, 1] = episode.terminated
        steps[:-1, 2:] = self._features(episode, None, name)
        rows = np.concatenate([*vectors, steps], axis=1)
        images = [self._image(episode, key, name) for key in self.images]
        return rows, np.concatenate(images, axis=1) if images else np.zeros((len(rows), 0), np.uint8)

    def _features(self, episode: Episode, key: str | None, name: str) -> np.ndarray:
        """Features of an observation key, or of the actions (None)."""
        what = "actions" if key is None else f"observations {key!r}"
        leaf = self.action_space if key is None else self.observation_space[key]
        values = episode.actions if key is None else self._values(episode, key, name)
        try:
            features = spaces.features(values, leaf)
        except ValueError as error:
            raise UserError(f"{name}: its {what} do not fit their space: {error}") from None
        if (width := features.shape[1]) != spaces.num_features(leaf):
            raise UserError(f"{name}: its {what} have {width} entries, their space {spaces.num_features(leaf)}")
        return features

    def _image(self, episode: Episode, key: str, name: str) -> np.ndarray:
        values, leaf = self._values(episode, key, name), self.observation_space[key]
        if wrong := spaces.outside(values, leaf):
            raise UserError(f"{name}: its images {key!r} {wrong}")
        return spaces.images_of(values, leaf).reshape(len(values), -1)

    @staticmethod
    def _values(episode: Episode, key: str, name: str) -> np.ndarray:
        if key not in episode.observations:
            raise UserError(f"{name}: it has no observations {key!r}, only {', '.join(episode.observations)}")
        return episode.observations[key]


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a dataset: a view of the tables, which all episodes share."""

    layout: Layout
    frames: Rows  # (F, row_dim) float32, of the whole dataset
    images: Rows | None  # (F, pixels) uint8
    starts: np.ndarray  # (E,) int64: each episode's first row
    num_frames: np.ndarray  # (E,) int64: T + 1 of each episode
    names: Sequence[str]  # (E,) each episode's file and number

    def __len__(self) -> int:
        return len(self.num_frames)

    @property
    def num_transitions(self) -> int:
        return int(self.num_frames.sum()) - len(self)

    def select(self, indices: Iterable[int]) -> "Episodes":
        """The episodes with these indices, in this order."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        names = [self.names[i] for i in chosen]
        return replace(self, starts=self.starts[chosen], num_frames=self.num_frames[chosen], names=names)

    def cut(self, episode: int, begin: int, end: int) -> "Episodes":
        """Frames begin .. end - 1 of an episode, as an episode of its own.

        Its last row keeps the reward, end and action of the step to a frame that is not in it: no step of this episode.
        """
        names = [f"{self.names[episode]} (frames {begin} to {end - 1})"]
        return replace(self, starts=self.starts[[episode]] + begin, num_frames=np.array([end - begin]), names=names)

    def rows(self, episode: int) -> np.ndarray:
        """(T + 1,) the row numbers of an episode."""
        return self.starts[episode] + np.arange(self.num_frames[episode])

    def obs(self, rows: np.ndarray) -> np.ndarray:
        """Observations (..., O) float32 at these row numbers (...): vectors, then pixels from 0 to 255."""
        vectors = self.frames.take(rows, axis=0)[..., : self.layout.vector_dim]
        if self.images is None:
            return vectors
        return np.concatenate([vectors, self.images.take(rows, axis=0).astype(np.float32)], axis=-1)

    def reward(self, rows: np.ndarray) -> np.ndarray:
        """(...) float32."""
        return self.frames.take(rows, axis=0)[..., self.layout.vector_dim]

    def terminated(self, rows: np.ndarray) -> np.ndarray:
        """(...) bool: the step from this frame led to a terminal state."""
        return self.frames.take(rows, axis=0)[..., self.layout.vector_dim + 1] > 0

    def action(self, rows: np.ndarray) -> np.ndarray:
        """(..., A) float32."""
        return self.frames.take(rows, axis=0)[..., self.layout.vector_dim + 2 :]
