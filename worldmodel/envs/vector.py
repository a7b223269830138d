"""Environments that step together: their errors name the environment, and they end when they are told to."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from worldmodel.errors import UserError

log = logging.getLogger(__name__)


class SimulationError(Exception):
    """The simulator or the policy raised an error; its text names the environment and what was raised."""


def reset(envs: VectorEnv, seed: int) -> Any:
    """The first observations; environment i gets the seed `seed + i`."""
    return _answer(envs, lambda: envs.reset(seed=seed))[0]


def step(envs: VectorEnv, actions: np.ndarray) -> tuple[Any, ...]:
    """`envs.step`, with every error as a SimulationError (or a UserError) that names the environment."""
    return _answer(envs, lambda: envs.step(actions))


def attribute(envs: VectorEnv, name: str) -> Any:
    """An attribute of the first environment, or of a wrapper of it."""
    assert isinstance(envs, AsyncVectorEnv | SyncVectorEnv)
    return _answer(envs, lambda: envs.get_attr(name))[0]


def stop(envs: VectorEnv) -> None:
    """End the environments after an error: without waiting for what their processes are doing."""
    if not isinstance(envs, AsyncVectorEnv):
        close(envs)
        return
    for process in envs.processes:
        process.terminate()
    for process in envs.processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in envs.parent_pipes:
        if pipe is not None:  # Gymnasium's mark of a worker that has failed
            pipe.close()
    envs.closed = True


def close(envs: VectorEnv) -> None:
    """End the environments; what their `close` raises does not matter any more and is logged."""
    try:
        envs.close()
    except Exception as error:  # of the user's environment: of any type
        log.warning("closing the environments: %s", reason_of(error))


def reason_of(error: BaseException) -> str:
    """An exception in one line: type, message, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{where}"


class Factory:
    """Makes environment `index`, in this process or in a worker's."""

    def __init__(self, make: Callable[[], gym.Env], index: int) -> None:
        self.make, self.index, self.owner = make, index, os.getpid()

    def __call__(self) -> gym.Env:
        if os.getpid() != self.owner:  # a terminal sends Ctrl-C to workers too: they end when this process says so
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return _Named(self.make(), self.index)


class _Named(gym.Wrapper):
    """Puts the environment's number to every error in it."""

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.index = index

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self._run(lambda: self.env.reset(**kwargs), "its reset raised ")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._run(lambda: self.env.step(action), "")

    def _run(self, call: Callable[[], Any], where: str) -> Any:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # the simulator may raise anything
            raise SimulationError(f"environment {self.index}: {where}{reason_of(error)}") from error


def _answer(envs: VectorEnv, ask: Callable[[], Any]) -> Any:
    # Gymnasium prints a worker's traceback as warnings, and formats it with %, which fails on some: keep it silent
    level = gym.logger.min_level
    gym.logger.min_level = 100 if isinstance(envs, AsyncVectorEnv) else level
    try:
        return ask()
    except (SimulationError, UserError):
        raise
    except (EOFError, OSError) as error:
        if not isinstance(envs, AsyncVectorEnv):
            raise
        raise SimulationError(_ended(envs)) from error
    except Exception as error:
        raise SimulationError(reason_of(error)) from error
    finally:
        gym.logger.min_level = level


def _ended(envs: AsyncVectorEnv) -> str:
    """Which worker is gone, in words."""
    deadline = time.monotonic() + 1  # its pipe may close a moment before the system reports its end
    while all(process.exitcode is None for process in envs.processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    ends = {i: process.exitcode for i, process in enumerate(envs.processes) if process.exitcode is not None}
    named = ", ".join(f"environment {i} (exit status {code})" for i, code in ends.items()) or "an environment"
    return f"the process of {named} ended by itself: it crashed, or the system killed it for memory"
