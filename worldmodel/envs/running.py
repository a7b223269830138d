"""Environments under way: what each of them shows, where an episode starts, and which steps are transitions."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from worldmodel.envs.vector import reset, step


class Stepped(NamedTuple):
    """What one step of all environments gave, (N,) each."""

    reward: np.ndarray
    terminated: np.ndarray
    over: np.ndarray  # terminated or truncated
    valid: np.ndarray  # False: the step behind an episode's end, which only resets; its action was not taken
    infos: dict[str, Any]


class Running:
    """Steps environments that reset in the step behind an episode's end (`AutoresetMode.NEXT_STEP`).

    So the last observation of an episode is shown like any other, and a policy's state behind it can be asked for its
    value. Raises what `vector.step` raises.

    Args:
        envs: of make_simulator.
        seed: environment i starts from `seed + i`.
    """

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self.envs = envs
        self.observations = reset(envs, seed)
        self.is_first = np.ones(envs.num_envs, bool)  # the observation is an episode's first
        self._ended = np.zeros(envs.num_envs, bool)  # ... its last

    def step(self, actions: np.ndarray) -> Stepped:
        """Take the actions (N, ...)."""
        self.observations, reward, terminated, truncated, infos = step(self.envs, actions)
        over, valid = terminated | truncated, ~self._ended
        self.is_first, self._ended = self._ended, over
        return Stepped(reward, terminated, over, valid, infos)
