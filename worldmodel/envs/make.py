"""Gymnasium environments by name, with errors that say what to do."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from worldmodel import parts
from worldmodel.data.spaces import describe, describe_observation
from worldmodel.envs.render import GL_HINT, Pixels, has_own_image, is_mujoco, may_fork, prepare_display, prepare_mujoco
from worldmodel.envs.vector import Factory
from worldmodel.envs.wrappers import ActionMask, MixedTimeLimit, has_mask
from worldmodel.errors import UserError, nearest, reason_of


@dataclass(frozen=True)
class Simulator:
    """Environments that step together."""

    env_id: str
    envs: VectorEnv
    rate: float  # steps a second of simulated time; NaN: unknown
    about: dict[str, Any]  # for the manifest: the class, and the versions of the packages it uses


def make_simulator(
    env_id: str,
    num_envs: int,
    max_episode_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vectorization: Literal["sync", "async"] = "sync",
    pixels: tuple[int, int] | None = None,
    min_episode_steps: int | None = None,
    masks: bool = False,
) -> Simulator:
    """`num_envs` copies of an environment that step together; with `pixels` (H, W) wrapped in `Pixels`.

    With `min_episode_steps` each episode has its own time limit (`MixedTimeLimit`); with `masks` an environment whose
    info has an `action_mask` shows it in its observation (`ActionMask`). The step after an episode's end resets
    (`AutoresetMode.NEXT_STEP`), so the last observation is the true one.

    Raises:
        UserError: if the environment is unknown, cannot be made with these options, cannot be rendered, has spaces
            that cannot be recorded, or lacks a package.
    """
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # else pygame takes SIGTERM, and nobody reads its event
    options = {"max_episode_steps": max_episode_steps, **(env_kwargs or {})}
    no_backend = ""
    if pixels or options.get("render_mode") == "rgb_array":
        prepare_display()
        if ":" in env_id or "mujoco" in _entry(env_id):  # the user's module may import mujoco
            no_backend = prepare_mujoco()
    probe = _made(lambda: gym.make(registered(env_id), **options), env_id, env_kwargs)
    try:
        describe_observation(probe.observation_space)
        describe(probe.action_space)
        about = {"env_entry_point": _entry(env_id), "versions": _versions(probe)}
        rate, rendered = rate_of(probe), pixels is not None and not has_own_image(probe)
        masks = masks and _made(lambda: has_mask(probe), env_id, env_kwargs)
        if rendered and no_backend and is_mujoco(probe):
            raise UserError(no_backend)
    finally:
        probe.close()
    if rendered:
        options["render_mode"] = "rgb_array"
        env_kwargs = {**(env_kwargs or {}), "render_mode": "rgb_array"}

    def make() -> gym.Env:
        env = gym.make(registered(env_id), **options)  # a worker may be a new process
        if min_episode_steps is not None and max_episode_steps is not None:
            env = MixedTimeLimit(env, min_episode_steps, max_episode_steps)
        env = ActionMask(env) if masks else env
        return Pixels(env, pixels, native="width" in options or "height" in options) if pixels else env

    factories = [Factory(make, i) for i in range(num_envs)]
    mode = AutoresetMode.NEXT_STEP

    def side_by_side() -> VectorEnv:
        if vectorization == "sync":
            return SyncVectorEnv(factories, autoreset_mode=mode)
        return AsyncVectorEnv(factories, autoreset_mode=mode, context=None if may_fork() else "spawn")

    return Simulator(env_id, _made(side_by_side, env_id, env_kwargs), rate, about)


def registered(env_id: str) -> str:
    """An environment's name in Gymnasium's registry; what `file.py:name` or `module:name` means is loaded.

    The name is one that the file or module registers, or a class or function in it; a class is taken as it registers
    it, or else without a time limit.

    Raises:
        PartError: if it cannot be loaded, or there is no such environment in it.
    """
    if not parts.is_own(env_id):
        return env_id
    module, name = parts.module_of(env_id, "environment"), env_id.rpartition(":")[2]
    if name in gym.registry:
        return name
    if not callable(make := getattr(module, name, None)):
        known = [key for key, spec in gym.registry.items() if _is_of(spec.entry_point, module.__name__)]
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, gym.Env)]
        what = f"{env_id}: there is no such environment; {nearest(name, [*known, *classes])}"
        raise parts.PartError(f"{what} An environment is {parts.INTERFACES['environment']}")
    if own := next((key for key, spec in gym.registry.items() if spec.entry_point is make), None):
        return own
    own = f"own/{name}-v0"
    gym.registry.pop(own, None)  # of another file, or of this one before it changed
    gym.register(own, entry_point=cast(Any, make))
    return own


def _is_of(entry_point: Any, module: str) -> bool:
    return getattr(entry_point, "__module__", str(entry_point).partition(":")[0]) == module


def rate_of(env: gym.Env) -> float:
    """Steps a second of simulated time: from the environment's `dt` or `tau` (seconds), else its `render_fps`.

    NaN for Gymnasium's classic and toy games, whose `render_fps` is only a playback speed.
    """
    for name in ("dt", "tau"):
        seconds = getattr(env.unwrapped, name, None)
        if isinstance(seconds, int | float | np.floating) and 0 < seconds < float("inf"):
            return 1 / float(seconds)
    fps = env.metadata.get("render_fps")
    playback = type(env.unwrapped).__module__.startswith(("gymnasium.envs.classic_control", "gymnasium.envs.toy_text"))
    return float(fps) if isinstance(fps, int | float) and fps > 0 and not playback else float("nan")


def _made(make: Callable[[], Any], env_id: str, env_kwargs: dict[str, Any] | None) -> Any:
    try:
        return make()
    except UserError:
        raise
    except (gym.error.NameNotFound, gym.error.VersionNotFound, gym.error.NamespaceNotFound) as error:
        raise UserError(f"unknown environment {env_id!r}: {nearest(env_id, gym.registry)}") from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        extra = "pip install 'worldmodel[mujoco]'" if "mujoco" in str(error).lower() + _entry(env_id) else "install it"
        raise UserError(f"{env_id} needs a package that is missing ({reason}): {extra}") from error
    except Exception as error:  # its constructor may raise anything
        explained = isinstance(error, gym.error.Error | TypeError) and str(error).strip()
        reason = str(error).strip().splitlines()[0] if explained else reason_of(error)
        backend = os.environ.get("MUJOCO_GL") if "mujoco" in _entry(env_id) else None
        hint = f"; if it is the renderer (MUJOCO_GL is {backend!r}): {GL_HINT}" if backend and not explained else ""
        raise UserError(f"{env_id} cannot be made with {env_kwargs or 'its defaults'}: {reason}{hint}") from error


def _entry(env_id: str) -> str:
    """The import path of a registered environment's class, or an empty string."""
    spec = gym.registry.get(env_id.rsplit(":", 1)[-1])
    if parts.is_own(env_id) and not (spec and isinstance(spec.entry_point, str)):
        return env_id  # a class of the user's file
    return str(spec.entry_point) if spec else ""


def _versions(env: gym.Env) -> dict[str, str]:
    """The versions of the packages that may affect the data."""
    module = type(env.unwrapped).__module__
    names = {"gymnasium", "numpy", "worldmodel", module.split(".")[0]} | ({"mujoco"} if is_mujoco(env) else set())
    names |= {"box2d"} if module.startswith("gymnasium.envs.box2d") else set()
    versions: dict[str, str] = {}
    for name in sorted(names):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
