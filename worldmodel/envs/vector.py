"""Environments that step together: which steps are transitions, errors that name the environment, and a clean end."""

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from worldmodel.errors import UserError, reason_of

log = logging.getLogger(__name__)


class SimulationError(Exception):
    """The simulator or the policy raised an error; the text names the environment and the error."""


class Step(NamedTuple):
    """The results of one step of all environments, (N,) each."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    over: np.ndarray  # terminated or truncated
    valid: np.ndarray  # False: the step after an episode's end, which only resets; its action was ignored
    infos: dict[str, Any]


class Stepper:
    """Steps environments that reset in the step after an episode's end (`AutoresetMode.NEXT_STEP`).

    The last observation of an episode is therefore shown like any other, and a policy can give its value.

    Args:
        envs: of make_simulator.
        seed: environment i starts from `seed + i`.

    Raises:
        SimulationError: if an environment raised an error, here or in `step`.
    """

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self.envs, self.number = envs, 0  # the number of the next step
        self.observations = _answer(envs, lambda: envs.reset(seed=seed))[0]
        self.is_first = np.ones(envs.num_envs, bool)  # the observation is the first of an episode
        self._is_last = np.zeros(envs.num_envs, bool)

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions (N, ...)."""
        try:
            answer = _answer(self.envs, lambda: self.envs.step(actions))
        except SimulationError as error:
            raise SimulationError(f"step {self.number}, {error}") from error
        self.observations, reward, terminated, truncated, infos = answer
        over, valid = terminated | truncated, ~self._is_last
        self.is_first, self._is_last, self.number = self._is_last, over, self.number + 1
        return Step(reward, terminated, truncated, over, valid, infos)


def shares(total: int, num_envs: int) -> np.ndarray:
    """Divide a number of steps or episodes among environments as evenly as possible, (N,) int64."""
    return total // num_envs + (np.arange(num_envs) < total % num_envs)


def attribute(envs: VectorEnv, name: str) -> Any:
    """An attribute of the first environment, or of one of its wrappers."""
    assert isinstance(envs, AsyncVectorEnv | SyncVectorEnv)
    return _answer(envs, lambda: envs.get_attr(name))[0]


def stop(envs: VectorEnv) -> None:
    """End the environments after an error, without waiting for their processes to finish a step."""
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
        if pipe is not None:  # Gymnasium sets the pipe of a failed worker to None
            pipe.close()
    envs.closed = True


def close(envs: VectorEnv) -> None:
    """End the environments; an error in their `close` is only logged."""
    try:
        envs.close()
    except Exception as error:  # of the user's environment: of any type
        log.warning("closing the environments: %s", reason_of(error))


class Factory:
    """Makes environment `index`, in this process or in a worker."""

    def __init__(self, make: Callable[[], gym.Env], index: int) -> None:
        self.make, self.index, self.owner = make, index, os.getpid()

    def __call__(self) -> gym.Env:
        if os.getpid() != self.owner:  # a terminal sends Ctrl-C to workers too; only this process may act on it
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return _Named(self.make(), self.index)


class _Named(gym.Wrapper):
    """Adds the environment's number to every error it raises."""

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
    # Gymnasium prints a worker's traceback as warnings and formats it with %, which can itself fail: silence it
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
    """Which worker has ended, in words."""
    deadline = time.monotonic() + 1  # its pipe may close a moment before the system reports its end
    while all(process.exitcode is None for process in envs.processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    ends = {i: process.exitcode for i, process in enumerate(envs.processes) if process.exitcode is not None}
    named = ", ".join(f"environment {i} (exit status {code})" for i, code in ends.items()) or "an environment"
    return f"the process of {named} ended by itself: it crashed, or the system killed it for lack of memory"
