"""Whole episodes of a policy: their returns, and a film of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from PIL import Image

from worldmodel.durable import whole_file
from worldmodel.envs.make import Simulator
from worldmodel.envs.policies import CheckedPolicy, Policy
from worldmodel.envs.render import area_average
from worldmodel.envs.vector import SimulationError, Stepper, close, shares
from worldmodel.errors import UserError, reason_of
from worldmodel.statistics import t_interval

SUCCESS = ("success", "is_success")  # names in an environment's info


@dataclass(frozen=True)
class EpisodeReturns:
    """N episodes, those of environment 0 first, each environment's in their order."""

    returns: np.ndarray  # (N,) float64: the sum of an episode's rewards
    lengths: np.ndarray  # (N,) int64, steps
    success: np.ndarray | None  # (N,) bool, from `info` at the last step; None: the environment does not report it

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean return and its 95% interval, (mean, low, high)."""
        return t_interval(self.returns)

    @property
    def success_rate(self) -> tuple[float, float, float]:
        """The share of successes and its 95% interval; NaN where success is not reported."""
        return t_interval([] if self.success is None else self.success.astype(float))


def play(
    simulator: Simulator,
    policy: Policy,
    episodes: int,
    seed: int,
    on_step: Callable[[np.ndarray], None] = lambda counted: None,
) -> EpisodeReturns:
    """Act for a number of episodes, then close the environments.

    Each environment plays a fixed share of them: taking the first ones to end would favour short episodes.

    Args:
        simulator: no more environments than episodes.
        policy: see envs.policies. It is also asked about an episode's last observation; that action is ignored.
        episodes: N.
        seed: environment i starts from `seed + i`.
        on_step: called after every step with (num_envs,) bool, the environments whose step counted.

    Raises:
        UserError: if there are fewer episodes than environments, the actions are invalid, or an environment or the
            policy raised an error.
    """
    num_envs = simulator.envs.num_envs
    try:
        if episodes < num_envs:
            raise UserError(f"{episodes} episodes of {num_envs} environments: each must play at least one")
        return _play(simulator.envs, policy, episodes, seed, on_step)
    except SimulationError as error:
        raise UserError(f"{simulator.env_id}, {error}") from error
    finally:
        close(simulator.envs)


def _play(
    envs: VectorEnv, policy: Policy, episodes: int, seed: int, on_step: Callable[[np.ndarray], None]
) -> EpisodeReturns:
    left = shares(episodes, envs.num_envs)
    stepper, act = Stepper(envs, seed), CheckedPolicy(policy, envs)
    summed, length = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    finished: list[list[tuple[float, int, bool | None]]] = [[] for _ in range(envs.num_envs)]
    while left.any():
        step = stepper.step(act(stepper.observations, stepper.is_first, stepper.number))
        counted = (left > 0) & step.valid
        summed, length = summed + np.where(counted, step.reward, 0.0), length + counted
        on_step(counted)
        for i in np.flatnonzero(step.over & counted).tolist():
            finished[i].append((float(summed[i]), int(length[i]), _success(step.infos, i)))
            summed[i], length[i] = 0.0, 0
            left[i] -= 1
    returns, lengths, success = zip(*(episode for several in finished for episode in several), strict=True)
    reported = None if None in success else np.array(success, bool)
    return EpisodeReturns(np.array(returns), np.array(lengths), reported)


def _success(infos: dict[str, Any], i: int) -> bool | None:
    """Whether environment i succeeded; None: it does not report it. The mask `_name` says whose `name` is set."""
    for name in SUCCESS:
        if name in infos and infos.get(f"_{name}", np.ones(i + 1, bool))[i]:
            return bool(infos[name][i])
    return None


class Film:
    """Frames of the first environment, which must have been made with render_mode rgb_array.

    Args:
        envs: in this process.
        side: pixels of a frame's shorter side, at most.
        most: frames; of a longer film only every second frame is kept, then every fourth, and so on.
    """

    def __init__(self, envs: VectorEnv, side: int = 200, most: int = 250) -> None:
        assert isinstance(envs, SyncVectorEnv)
        self.env, self.side, self.most = envs.envs[0], side, most
        self.frames: list[np.ndarray] = []
        self.every, self.step = 1, 0
        self.problem = ""  # why no further frame could be rendered

    def on_step(self, counted: np.ndarray) -> None:
        """Take a frame if the first environment is still playing; an error in rendering ends the film."""
        if not counted[0] or self.problem:
            return
        if self.step % self.every == 0:
            try:
                self.frames.append(smaller(np.asarray(self.env.render()), self.side))
            except Exception as error:  # drivers and environments raise anything, and a film is not worth a run
                self.problem = reason_of(error)
        self.step += 1
        if len(self.frames) > self.most:
            self.frames, self.every = self.frames[::2], 2 * self.every

    def save(self, path: Path) -> None:
        """Write a GIF of 25 frames a second."""
        first, *others = [Image.fromarray(frame).quantize(64) for frame in self.frames]
        with whole_file(path) as temporary:
            first.save(temporary, "GIF", save_all=True, append_images=others, duration=40, loop=0)


def smaller(frame: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, C) whose shorter side has `side` pixels at most."""
    scale = side / min(frame.shape[:2])
    return frame if scale >= 1 else area_average(frame, *(round(scale * size) for size in frame.shape[:2]))
