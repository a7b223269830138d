"""Whole episodes of a policy, and what they returned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.envs.make import Simulator
from worldmodel.envs.policies import CheckedPolicy, Policy
from worldmodel.envs.running import Running
from worldmodel.errors import UserError
from worldmodel.statistics import t_interval

SUCCESS = ("success", "is_success")  # names in an environment's info


@dataclass(frozen=True)
class Played:
    """N episodes, those of environment 0 first, each environment's in their order."""

    returns: np.ndarray  # (N,) float64: the sum of an episode's rewards
    lengths: np.ndarray  # (N,) int64, steps
    success: np.ndarray | None  # (N,) bool, what `info` said at the last step; None where it says nothing

    @property
    def mean(self) -> tuple[float, float, float]:
        """The mean return and its 95% interval, (mean, low, high)."""
        return t_interval(self.returns)

    @property
    def success_rate(self) -> tuple[float, float, float]:
        """The share of successes and its 95% interval; NaN where nothing is known of them."""
        return t_interval([] if self.success is None else self.success.astype(float))


def play(
    simulator: Simulator,
    policy: Policy,
    episodes: int,
    seed: int,
    on_step: Callable[[np.ndarray], None] = lambda counted: None,
) -> Played:
    """Act until `episodes` episodes are over.

    Each environment plays a share that is settled beforehand: the first ones to end would be the short ones.

    Args:
        simulator: of envs.make.make_simulator; no more environments than episodes.
        policy: see envs.policies. After an episode's end it is asked once more, about the last observation, and what it
            answers is not taken.
        episodes: N.
        seed: environment i starts from `seed + i`.
        on_step: called behind every step with (num_envs,) bool, the environments whose step counted (to film them).

    Raises:
        UserError: if there are fewer episodes than environments, or the actions do not do.
        SimulationError: if an environment or the policy raised an error.
    """
    envs = simulator.envs
    if episodes < envs.num_envs:
        raise UserError(f"{episodes} episodes of {envs.num_envs} environments: each must play one at least")
    quota, extra = divmod(episodes, envs.num_envs)
    left = np.array([quota + (i < extra) for i in range(envs.num_envs)])
    running, act = Running(envs, seed), CheckedPolicy(policy, envs)
    summed, length = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    finished: list[list[tuple[float, int, bool | None]]] = [[] for _ in range(envs.num_envs)]
    number = 0
    while left.any():
        stepped = running.step(act(running.observations, running.is_first, number))
        counted = (left > 0) & stepped.valid
        summed, length = summed + np.where(counted, stepped.reward, 0.0), length + counted
        on_step(counted)
        for i in np.flatnonzero(stepped.over & counted).tolist():
            finished[i].append((float(summed[i]), int(length[i]), _succeeded(stepped.infos, i)))
            summed[i], length[i] = 0.0, 0
            left[i] -= 1
        number += 1
    returns, lengths, success = zip(*(episode for several in finished for episode in several), strict=True)
    told = None if None in success else np.array(success, bool)
    return Played(np.array(returns), np.array(lengths), told)


def _succeeded(infos: dict[str, Any], i: int) -> bool | None:
    """What the info of environment i says; None: nothing. (Of several environments `_name` says who told `name`.)"""
    for name in SUCCESS:
        if name in infos and infos.get(f"_{name}", np.ones(i + 1, bool))[i]:
            return bool(infos[name][i])
    return None
