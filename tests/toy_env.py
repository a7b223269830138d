"""An environment whose every transition can be checked: `gymnasium.make("toy_env:Toy-v0")`."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def next_observation(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """o' = f(o, a), exact in float32: small integers. obs (..., 2), action (..., 1) in {-2, -1, 0, 1, 2}."""
    first = (3 * obs[..., 0] + 5 * obs[..., 1] + 7 * action[..., 0] + 1) % 31
    second = (2 * obs[..., 1] + obs[..., 0] + 11 * action[..., 0]) % 29
    return np.stack([first, second], axis=-1).astype(np.float32)


def reward_of(obs: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
    """r(o, a, o'), exact."""
    return (obs[..., 0] - 2 * after[..., 1] + 0.5 * action[..., 0]).astype(np.float32)


class Toy(gym.Env):
    """Deterministic, given the start and the actions; terminal where o[0] is 0, so that lengths vary."""

    observation_space = spaces.Box(0, 31, (2,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, ends: bool = True) -> None:
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = self.np_random.integers(1, 29, 2).astype(np.float32)
        return self.obs.copy(), {}

    def step(self, action):
        before, self.obs = self.obs, next_observation(self.obs, action)
        reward = float(reward_of(before, np.asarray(action), self.obs))
        return self.obs.copy(), reward, bool(self.ends and self.obs[0] == 0), False, {}


def integer_actions(observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """A user's policy: integers that depend on the observation and differ between neighbouring steps."""
    return ((observations[:, :1] + 2 * observations[:, 1:] + is_first[:, None]) % 5 - 2).astype(np.float32)


gym.register("Toy-v0", entry_point=Toy)
