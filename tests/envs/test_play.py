"""Played episodes: the whole sum of their rewards, no short ones preferred, memories told where an episode starts."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.envs.make import make_simulator
from worldmodel.envs.play import play
from worldmodel.errors import UserError


class Stairs(gym.Env):
    """Episode k of the environment with seed s has 1 + (s + 3 k) % 7 steps; step t gives t and shows [t, k]."""

    observation_space, action_space = spaces.Box(0, 99, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode, self.t = self.episode + 1, 0
        self.length = 1 + (self.seed + 3 * self.episode) % 7
        return np.array([0, self.episode], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        info = {"is_success": bool(self.length > 3)} if over else {}
        terminated = over and self.length % 2 == 0
        return np.array([self.t, self.episode], np.float32), float(self.t), terminated, over and not terminated, info


gym.register("Stairs-v0", entry_point=Stairs)


def watching(seen):
    def policy(observations, is_first):
        seen.append((observations.copy(), is_first.copy()))
        return np.zeros(len(is_first), np.int64)

    return policy


def test_every_environment_plays_its_share_whole():
    seen = []
    played = play(make_simulator("Stairs-v0", 3), watching(seen), episodes=7, seed=4)
    lengths = [1 + (seed + 3 * k) % 7 for seed, share in ((4, 3), (5, 2), (6, 2)) for k in range(share)]
    assert played.lengths.tolist() == lengths
    assert played.returns.tolist() == [n * (n + 1) / 2 for n in lengths]
    assert played.success is not None and played.success.tolist() == [n > 3 for n in lengths]
    assert played.mean[0] == pytest.approx(np.mean(played.returns)) and played.mean[1] < played.mean[0] < played.mean[2]
    for observations, is_first in seen:
        assert ((observations[:, 0] == 0) == is_first).all(), "told where an episode starts, and nowhere else"


def test_steps_that_count_are_the_episodes():
    counted = []
    played = play(make_simulator("Stairs-v0", 2), watching([]), 5, 0, lambda steps: counted.append(steps.sum()))
    assert sum(counted) == played.lengths.sum()


def test_fewer_episodes_than_environments_are_an_error():
    with pytest.raises(UserError, match="1 episodes of 2 environments"):
        play(make_simulator("Stairs-v0", 2), watching([]), 1, 0)


def test_no_success_where_nobody_tells():
    played = play(make_simulator("CartPole-v1", 2), watching([]), 2, 0)
    assert played.success is None and np.isnan(played.success_rate[0])
    assert (played.returns == played.lengths).all()
