"""An episode in the canonical form, and many of them side by side in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """T + 1 observations and the T transitions between them.

    `actions[t]` is taken after `observations[t]` and leads, with `rewards[t]`, to `observations[t + 1]`. The last
    observation is the true final one, not that of a reset. `terminated`: the last transition led to a terminal
    state; `truncated`: the episode was cut by a time limit or by the end of the recording.
    """

    observations: np.ndarray  # (T + 1, ...)
    actions: np.ndarray  # (T, ...)
    rewards: np.ndarray  # (T,)
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        """The number of transitions, T."""
        return len(self.rewards)


@dataclass(frozen=True)
class Episodes:
    """Episodes as float vectors in memory, frame after frame, so that a batch is one gather.

    An episode of T transitions takes T + 1 rows; the last row of `action`, `reward` is zero and `terminated` false.
    """

    obs: np.ndarray  # (F, O) float32
    action: np.ndarray  # (F, A) float32
    reward: np.ndarray  # (F,) float32
    terminated: np.ndarray  # (F,) bool: the step from this frame led to a terminal state
    num_frames: np.ndarray  # (E,) int64: T + 1 of each episode
    names: Sequence[str]  # (E,): the file, and the episode in it

    @staticmethod
    def concatenate(parts: "Sequence[Episodes]") -> "Episodes":
        """The episodes of all parts, in order."""
        arrays = ("obs", "action", "reward", "terminated", "num_frames")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
        return Episodes(**joined, names=[name for part in parts for name in part.names])

    @property
    def starts(self) -> np.ndarray:
        """(E,) int64: each episode's first row."""
        return np.cumsum(self.num_frames) - self.num_frames

    @property
    def num_transitions(self) -> int:
        return int(self.num_frames.sum()) - len(self)

    def __len__(self) -> int:
        return len(self.num_frames)

    def rows(self, episode: int) -> slice:
        """The rows of one episode."""
        start = int(self.starts[episode])
        return slice(start, start + int(self.num_frames[episode]))

    def select(self, indices: Sequence[int] | np.ndarray) -> "Episodes":
        """The episodes with these indices, in this order."""
        starts, frames = self.starts[indices], self.num_frames[indices]
        first = np.cumsum(frames) - frames
        rows = np.arange(frames.sum()) + np.repeat(starts - first, frames)
        names = [self.names[i] for i in indices]
        return Episodes(self.obs[rows], self.action[rows], self.reward[rows], self.terminated[rows], frames, names)

    def first_non_finite(self, episode: int) -> tuple[str, int] | None:
        """The field and step of the first NaN or infinity in an episode, if there is one."""
        rows = self.rows(episode)
        fields = {"observation": self.obs[rows], "action": self.action[rows], "reward": self.reward[rows]}
        for field, values in fields.items():
            finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if not finite.all():
                return field, int(np.argmin(finite))
        return None
