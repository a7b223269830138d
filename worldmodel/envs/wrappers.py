"""Wrappers of an environment: a time limit that varies, and the mask of valid actions as an observation."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.spaces import OBSERVATION
from worldmodel.errors import UserError

MASK = "action_mask"  # in an info, or a key of a Dict observation: 1 where an action is valid


class MixedTimeLimit(gym.Wrapper):
    """Truncates each episode at a limit of its own, log-uniform from `shortest` to `longest` steps.

    A model that carries its state knows only the ages that training episodes reach. With this wrapper each doubling of
    the age is equally frequent. The limits have their own generator, so the simulator's noise is unchanged.
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


class ActionMask(gym.Wrapper):
    """Shows the mask in an environment's info as a key of its observation, a Dict.

    Raises:
        UserError: if the actions are neither Discrete, MultiDiscrete nor MultiBinary.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.size, inner = num_choices(env.action_space), env.observation_space
        keys = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {OBSERVATION: inner}
        self.observation_space = spaces.Dict({**keys, MASK: spaces.MultiBinary(self.size)})
        self.is_dict = isinstance(inner, spaces.Dict)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(obs, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(obs, info), reward, terminated, truncated, info

    def _with_mask(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get(MASK, np.ones(self.size))
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        return {**(obs if self.is_dict else {OBSERVATION: obs}), MASK: flat.astype(np.int8)}


def num_choices(space: spaces.Space) -> int:
    """P, entries of a mask: the choices of all factors one after the other."""
    match space:
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case spaces.MultiBinary():
            return 2 * int(np.prod(space.shape))
    raise UserError(f"an action_mask is for discrete actions, and these are {space}")


def has_mask(env: gym.Env) -> bool:
    """Whether the environment's info has a mask; resets the environment."""
    return MASK in env.reset(seed=0)[1]
