"""Policies that collect data: callables `(observations, is_first) -> actions` on all environments at once."""

import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel import parts
from worldmodel.envs.vector import SimulationError
from worldmodel.errors import UserError, nearest, reason_of

# (observations, is_first) -> actions (N, ...). Observations (N, ...) are the environments' own, with all entries and
# without rendered frames; a dict of arrays for a Dict space. is_first (N,) bool: an episode starts.
Policy = Callable[[Any, np.ndarray], np.ndarray]
log = logging.getLogger(__name__)


def make_policy(name: str, space: spaces.Space, num_envs: int, seed: int) -> Policy:
    """A policy for `num_envs` environments with the single action space `space`.

    Args:
        name: `uniform`, `smooth`, or `module:function` / `file.py:function` of the user's own, a Policy.

    Raises:
        UserError: if there is no such policy, or it does not support this action space.
    """
    match name:
        case "uniform":
            return _uniform(space, num_envs, seed)
        case "smooth":
            return _smooth(space, num_envs, seed)
    if not parts.is_own(name):
        raise UserError(f"unknown policy {name!r}: {nearest(name, ['uniform', 'smooth'])} Your own: file.py:function")
    policy = parts.load(name, "policy")
    if not callable(policy):
        raise parts.misfit(name, "policy", f"it is {type(policy).__name__}")
    return cast(Policy, policy)


class CheckedPolicy:
    """A policy whose actions are checked: finite, and of the space's shape and dtype.

    Actions outside a Box's bounds are let through with one warning, since many environments clip them.
    """

    def __init__(self, policy: Policy, envs: VectorEnv) -> None:
        self.policy, self.space, self.warned = policy, envs.action_space, False

    def __call__(self, observations: Any, is_first: np.ndarray, number: int) -> np.ndarray:
        """The actions (N, ...) of step `number`.

        Raises:
            SimulationError: if the policy raised an error.
            UserError: if its actions are invalid.
        """
        try:
            actions = np.asarray(self.policy(observations, is_first))
        except UserError:
            raise
        except Exception as error:  # the user's code: of any type
            raise SimulationError(f"step {number}: the policy raised {reason_of(error)}") from error
        if actions.shape != self.space.shape:
            raise UserError(f"the policy gave actions of shape {actions.shape}; it must be {self.space.shape}")
        if actions.dtype.kind not in "biuf" or not np.can_cast(actions.dtype, np.dtype(self.space.dtype), "same_kind"):
            raise UserError(f"the policy gave actions of dtype {actions.dtype}; it must be {self.space.dtype}")
        if not np.isfinite(actions).all():
            i = int(np.argwhere(~np.isfinite(actions))[0][0])
            raise UserError(f"the policy gave a NaN or infinite action at step {number}, environment {i}: {actions[i]}")
        actions = actions.astype(self.space.dtype, copy=False)
        self._check_bounds(actions, number)
        return actions

    def _check_bounds(self, actions: np.ndarray, number: int) -> None:
        if self.warned or self.space.contains(actions):
            return
        if not isinstance(self.space, spaces.Box):
            raise UserError(f"the policy gave {actions} at step {number}, which is not of the space {self.space}")
        log.warning(
            "the policy's action leaves the bounds of the action space at step %d: it is recorded as given, even if the"
            " environment clips it",
            number,
        )
        self.warned = True


def _uniform(space: spaces.Space, num_envs: int, seed: int) -> Policy:
    """Independent draws from the action space."""
    many = batch_space(space, num_envs)
    many.seed(seed)
    return lambda observations, is_first: many.sample()


def _smooth(space: spaces.Space, num_envs: int, seed: int, memory: float = 0.9) -> Policy:
    """Persistent actions: for a Box an AR(1) process whose stationary spread fills the bounds, else sticky draws.

    Independent draws average out over a few steps and hardly move a body with inertia.
    """
    rng = np.random.default_rng(seed)
    if isinstance(space, spaces.Box):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UserError(
                "the smooth policy needs bounded actions, and this Box is unbounded: give your own module:function"
            )
        middle, half = (space.low + space.high) / 2, (space.high - space.low) / 2
        state = np.zeros((num_envs, *space.shape))

        def act_box(observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
            nonlocal state
            noise = rng.standard_normal(state.shape)
            fresh = np.broadcast_to(is_first.reshape(-1, *[1] * len(space.shape)), state.shape)
            state = np.where(fresh, noise, memory * state + np.sqrt(1 - memory**2) * noise)
            return (middle + half * np.clip(state, -1, 1)).astype(space.dtype)

        return act_box

    many = batch_space(space, num_envs)
    many.seed(seed)
    last = many.sample()

    def act_sticky(observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        nonlocal last
        redraw = (rng.random(num_envs) > memory) | is_first
        last = np.where(redraw.reshape(-1, *[1] * (np.ndim(last) - 1)), many.sample(), last)
        return last

    return act_sticky
