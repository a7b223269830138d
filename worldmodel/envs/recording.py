"""An episode that is under way."""

import numpy as np

from worldmodel.data.episode import Episode


class Recording:
    """Transitions of one episode, in arrays that double when they are full: no Python object for each step.

    Args:
        first: key -> (N, ...) the first observations of N environments.
        index: the environment that is recorded.
        rate: steps a second.
    """

    def __init__(self, first: dict[str, np.ndarray], index: int, rate: float) -> None:
        self.index, self.rate, self.length = index, rate, 0
        self.observations = {key: np.empty((64, *values.shape[1:]), values.dtype) for key, values in first.items()}
        self._see(first)
        self.actions: np.ndarray | None = None
        self.rewards = np.empty(64)

    def add(self, actions: np.ndarray, rewards: np.ndarray, observations: dict[str, np.ndarray]) -> None:
        """The transition of this environment, out of those of all of them."""
        if self.actions is None:
            self.actions = np.empty((64, *actions.shape[1:]), actions.dtype)
        if self.length + 1 == len(self.rewards):
            self.observations = {key: _doubled(values) for key, values in self.observations.items()}
            self.actions, self.rewards = _doubled(self.actions), _doubled(self.rewards)
        self.actions[self.length], self.rewards[self.length] = actions[self.index], rewards[self.index]
        self.length += 1
        self._see(observations)

    def episode(self, terminated: bool, truncated: bool) -> Episode:
        """What was recorded, which must be one transition or more; nothing may be added any more."""
        assert self.actions is not None, "an episode has at least one transition"
        seen = {key: values[: self.length + 1] for key, values in self.observations.items()}
        acted, rewarded = self.actions[: self.length], self.rewards[: self.length]
        return Episode(seen, acted, rewarded, terminated, truncated, self.rate)

    def _see(self, observations: dict[str, np.ndarray]) -> None:
        for key, values in observations.items():
            self.observations[key][self.length] = values[self.index]


def _doubled(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.empty_like(values)])
