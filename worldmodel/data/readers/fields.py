"""Named arrays, and what programs call the fields that they hold."""

from typing import NamedTuple, Protocol

import numpy as np

ACTION, REWARD = ("actions", "action"), ("rewards", "reward")
OBSERVED = ("obs", "observations", "observation")
FOLLOWING = ("next_obs", "next_observations", "next_observation")
TERMINATED = ("terminated", "terminals", "terminations", "terminal", "is_terminal")
TRUNCATED = ("truncated", "timeouts", "truncations", "timeout", "is_truncated")
DONE = ("done", "dones")
EPISODE = ("episode_id", "episode_index", "episode_idx", "episode", "traj_id", "trajectory_id", "demo_id", "trial")
STOPS = "episode_ends"
# what stands beside observations and is none
NOTES = {*ACTION, *REWARD, *OBSERVED, *FOLLOWING, *TERMINATED, *TRUNCATED, *DONE, *EPISODE, "success", "is_success"}
NOTES |= {"ep_len", "ep_offset", "ep_idx", "step_idx", "step", "id", "seed", "render_time", "policy", "fail"}
NOTES |= {"timestep", "timesteps", "timestamp", "timestamps", "discount", "masks", "return", "returns"}
NOTE_PREFIXES = ("action.", "goal", "variation.", "_", "next_")


class Stored(NamedTuple):
    """What a file says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def rows(self) -> int:
        """Its length, if it is one of rows of numbers; else -1."""
        return self.shape[0] if self.shape and self.dtype.kind in "biuf" else -1


class Arrays(Protocol):
    """An open file of named arrays."""

    @property
    def stored(self) -> dict[str, Stored]:
        """Every array by its name; a `/` in it stands for a group."""
        ...

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows `start` to `stop` of an array of numbers."""
        ...

    def labels(self, name: str) -> np.ndarray:
        """An array (N,) of numbers or text."""
        ...


def is_note(name: str) -> bool:
    """Whether an array stands beside observations and is none, by the last part of its name."""
    last = name.split("/")[-1]
    return last in NOTES or last.startswith(NOTE_PREFIXES)
