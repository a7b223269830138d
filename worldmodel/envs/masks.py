"""Actions that are not valid now, told by the environment: Gymnasium's `action_mask`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.spaces import OBSERVATION
from worldmodel.errors import UserError

MASK = "action_mask"  # in an info, or a key of a Dict observation: 1 where an action is valid


def tells_mask(env: gym.Env) -> bool:
    """Whether its info has a mask; resets it."""
    return MASK in env.reset(seed=0)[1]


class MaskShown(gym.ObservationWrapper):
    """The mask of an environment's info as a key of its observation, a Dict: one place to look for it.

    Raises:
        UserError: if the actions are neither Discrete, MultiDiscrete nor MultiBinary.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        size, inner = num_choices(env.action_space), env.observation_space
        shown = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {OBSERVATION: inner}
        self.observation_space = spaces.Dict({**shown, MASK: spaces.MultiBinary(size)})
        self.is_dict = isinstance(inner, spaces.Dict)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._shown(obs, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(obs, info), reward, terminated, truncated, info

    def _shown(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get(MASK, np.ones(self.observation_space[MASK].shape))
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        return {**(obs if self.is_dict else {OBSERVATION: obs}), MASK: flat.astype(np.int8)}


def num_choices(space: spaces.Space) -> int:
    """P, entries of a mask: the choices of all factors behind one another."""
    match space:
        case spaces.Discrete():
            return int(space.n)
        case spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case spaces.MultiBinary():
            return 2 * int(np.prod(space.shape))
    raise UserError(f"an action_mask is for discrete actions, and these are {space}")
