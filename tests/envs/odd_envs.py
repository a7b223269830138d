"""Environments that go wrong, or observe unusually: `gymnasium.make("envs.odd_envs:Robot-v0")`."""

import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from toy_env import Toy


class Robot(Toy):
    """The toy with a nested Dict observation, an image in it, and a time step."""

    dt = 0.05
    observation_space = spaces.Dict(
        {
            "arm": spaces.Dict({"position": Toy.observation_space, "gripper": spaces.Discrete(3)}),
            "camera": spaces.Box(0, 255, (8, 9, 3), np.uint8),
        }
    )

    def seen(self):
        camera = np.full((8, 9, 3), int(self.obs[0]), np.uint8)
        return {"arm": {"position": self.obs.copy(), "gripper": int(self.obs[1]) % 3}, "camera": camera}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.seen(), *rest


class Failing(Toy):
    """Environment number `which` (they are reset with seeds 0, 1, ...) does something bad at its step `at`."""

    def __init__(self, what, at=50, which=1, seed=0):
        super().__init__()
        self.what, self.at, self.which, self.base, self.count, self.mine = what, at, which, seed, 0, None

    def reset(self, *, seed=None, options=None):
        if self.mine is None and seed is not None:
            self.mine = seed - self.base
        return super().reset(seed=seed)

    def step(self, action):
        self.count += 1
        if self.mine == self.which and self.count == self.at:
            match self.what:
                case "raise":
                    raise ZeroDivisionError("100 % of the cart is lost")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)
                case "nan":
                    return self.obs, float("nan"), False, False, {}
        return super().step(action)


class Screen(Toy):
    """Renders what it is told to: a moving dot, nothing, or an error."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, shows="dot", render_mode=None):
        super().__init__()
        self.shows, self.render_mode = shows, render_mode

    def render(self):
        match self.shows:
            case "error":
                raise RuntimeError("no context")
            case "text":
                return "o"
        frame = np.full((20, 40, 3), 255 if self.shows == "white" else 0, np.uint8)
        if self.shows == "dot":
            frame[int(self.obs[0]) % 20, :20] = 200
        return frame


def nan_at_30(observations, is_first):
    nan_at_30.calls += 1
    actions = np.zeros((len(observations), 1), np.float32)
    actions[-1] = np.nan if nan_at_30.calls > 30 else 0
    return actions


nan_at_30.calls = 0


def notes_firsts(observations, is_first):
    notes_firsts.seen += [tuple(o) for o in observations[is_first]]
    return np.ones((len(observations), 1), np.float32)


notes_firsts.seen = []


def raises(observations, is_first):
    raise KeyError("door")


def too_far(observations, is_first):
    return np.full((len(observations), 1), 3.0)


def wrong_index(observations, is_first):
    return np.full(len(observations), 7)


def by_camera(observations, is_first):
    """Of a Robot's nested observations."""
    return (observations["camera"][:, 0, 0, :1] % 5).astype(np.float32) - 2


gym.register("Robot-v0", entry_point=Robot, max_episode_steps=40)
gym.register("Failing-v0", entry_point=Failing, max_episode_steps=20)
gym.register("Screen-v0", entry_point=Screen, max_episode_steps=20)
