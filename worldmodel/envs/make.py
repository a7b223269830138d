"""Gymnasium environments by name, with errors that say what to do."""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from worldmodel.errors import UserError, nearest


def make_vector_env(
    env_id: str,
    num_envs: int,
    max_episode_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vectorization: Literal["sync", "async"] = "sync",
) -> VectorEnv:
    """`num_envs` copies of an environment that step together.

    The step after an episode's end resets (`AutoresetMode.NEXT_STEP`), so that the last observation is the true one.

    Raises:
        UserError: if the environment is not known, cannot be made with these options, or lacks a package.
    """

    def make() -> gym.Env:
        return gym.make(env_id, max_episode_steps=max_episode_steps, **(env_kwargs or {}))

    try:
        make().close()
        kind = SyncVectorEnv if vectorization == "sync" else AsyncVectorEnv
        return kind([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    except (gym.error.NameNotFound, gym.error.VersionNotFound, gym.error.NamespaceNotFound) as error:
        raise UserError(f"unknown environment {env_id!r}: {nearest(env_id, gym.registry)}") from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        extra = (
            "pip install 'worldmodel[mujoco]'" if "mujoco" in str(error).lower() + env_entry(env_id) else "install it"
        )
        raise UserError(f"{env_id} needs a package that is missing ({reason}): {extra}") from error
    except (gym.error.Error, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{env_id} cannot be made with {env_kwargs or 'its defaults'}: {reason}") from error


def env_entry(env_id: str) -> str:
    """The import path of a registered environment's class, or an empty string."""
    spec = gym.registry.get(env_id)
    return str(spec.entry_point) if spec else ""


def observed_space(space: spaces.Space, observe: list[int] | None) -> spaces.Space:
    """The space of the entries of a flat Box that are kept; all of any space where `observe` is None.

    Raises:
        UserError: if the space is no vector, or an entry does not exist.
    """
    if observe is None:
        return space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(f"--observe picks entries of a vector observation; this one is {space}")
    if not observe or not all(0 <= i < space.shape[0] for i in observe):
        raise UserError(
            f"--observe {','.join(map(str, observe))}: the observation has entries 0 to {space.shape[0] - 1}"
        )
    return spaces.Box(space.low[observe], space.high[observe], dtype=np.dtype(space.dtype).type)
