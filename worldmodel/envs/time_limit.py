"""Episodes of many lengths, so that training sees young states and old ones."""

from typing import Any

import gymnasium as gym
import numpy as np


class MixedTimeLimit(gym.Wrapper):
    """Truncates each episode at a limit of its own, log-uniform from `shortest` to `longest`.

    A model that carries its state knows only ages that its episodes reached, and with episodes of one length a start is
    rare: each doubling of the age is as frequent here. The limits have a generator of their own, so that the
    simulator's noise is what it would be without this wrapper.
    """

    def __init__(self, env: gym.Env, shortest: int, longest: int) -> None:
        super().__init__(env)
        self.range = np.log(shortest), np.log(longest + 1)
        self._limits = np.random.default_rng()
        self._left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._limits = np.random.default_rng([seed, 1])
        self._left = int(np.exp(self._limits.uniform(*self.range)))
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._left -= 1
        return obs, reward, terminated, truncated or self._left <= 0, info
