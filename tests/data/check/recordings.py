"""Recordings of real simulators, and of small systems with a known policy, as sources."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import gymnasium as gym
import numpy as np

from worldmodel.data.episode import ALIGNMENT, Episode, Source
from worldmodel.data.spaces import describe, describe_observation

Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def record(env_id: str, episodes: int, policy: str | Act, seed: int = 0, steps: int = 10**9, **options) -> Source:
    """Play `episodes` episodes of at most `steps` steps with a policy of `uniform` or `smooth` (AR(1), 0.9) actions."""
    env = gym.make(env_id, **options)
    rng = np.random.default_rng(seed)
    source = source_of([_play(env, seed * 10_000 + i, policy, rng, steps) for i in range(episodes)])
    return replace(
        source,
        observation_space=describe_observation(env.observation_space),
        action_space=describe(env.action_space),
    )


def played(env_id: str, episodes: int, act: Act, steps: int = 10**9, seed: int = 0, **options) -> Source:
    """Play with a policy of one's own; its actions are clipped to the bounds."""
    return record(env_id, episodes, act, seed, steps, **options)


def _play(env: gym.Env, seed: int, policy: str | Act, rng: np.random.Generator, steps: int) -> Episode:
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    smooth = np.zeros(getattr(env.action_space, "n", env.action_space.shape))
    while not (terminated or truncated):
        smooth = 0.9 * smooth + np.sqrt(1 - 0.9**2) * rng.normal(size=smooth.shape)
        if callable(policy):
            action = within(env.action_space, policy(observation, rng))
        else:
            action = choose(env.action_space, smooth if policy == "smooth" else None, rng)
        observation, reward, terminated, truncated, _ = env.step(action)
        truncated = truncated or len(actions) + 1 >= steps
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    return Episode(
        {"observation": np.stack(observations)}, np.stack(actions), np.asarray(rewards), terminated, truncated
    )


def choose(space: gym.Space, smooth: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """An action drawn uniformly, or following `smooth`: its largest entry, or half of it, clipped to the bounds."""
    if isinstance(space, gym.spaces.Discrete):
        return np.int64(rng.integers(space.n) if smooth is None else np.argmax(smooth))
    assert isinstance(space, gym.spaces.Box)
    if smooth is None:
        return rng.uniform(space.low, space.high).astype(np.float32)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(middle + half * 0.5 * smooth, space.low, space.high).astype(np.float32)


def within(space: gym.Space, action: np.ndarray | float) -> np.ndarray:
    """The action clipped to the bounds, in the space's type."""
    if isinstance(space, gym.spaces.Box):
        return np.clip(np.reshape(action, space.shape), space.low, space.high).astype(space.dtype)
    return np.int64(action)


def source_of(episodes: Sequence[Episode], action_space: dict | None = None) -> Source:
    """Episodes in memory as a source; without declared bounds."""
    first = episodes[0]
    boxes = {
        key: {"type": "Box", "shape": list(value.shape[1:]), "dtype": str(value.dtype), "low": None, "high": None}
        for key, value in first.observations.items()
    }
    action = {"type": "Box", "shape": list(first.actions.shape[1:]), "dtype": str(first.actions.dtype)}
    return Source(
        path=Path("data.h5"),
        format="worldmodel",
        observation_space=boxes,
        action_space=action_space or action | {"low": None, "high": None},
        alignment=ALIGNMENT,
        fingerprint="",
        episodes=lambda: ((f"data.h5, episode {i}", episode) for i, episode in enumerate(episodes)),
    )


def with_episodes(source: Source, change: Callable[[int, Episode], Episode]) -> Source:
    """The source with each episode changed."""

    def changed():
        for i, (name, episode) in enumerate(source.episodes()):
            yield name, change(i, episode)

    return replace(source, episodes=changed)


def shifted(source: Source, by: int) -> Source:
    """Stored actions moved in time: stored[t] = a[t + by]; the step without one is dropped."""

    def shift(_: int, episode: Episode) -> Episode:
        observations = {key: value[: len(value) - 1] if by > 0 else value[1:] for key, value in _obs(episode)}
        actions = episode.actions[1:] if by > 0 else episode.actions[:-1]
        rewards = episode.rewards[:-1] if by > 0 else episode.rewards[1:]
        return replace(episode, observations=observations, actions=actions, rewards=rewards)

    return with_episodes(source, shift)


def _obs(episode: Episode):
    return episode.observations.items()


def every_second(episode: Episode) -> Episode:
    """The episode at half the rate: every second frame, with the action of the first of the two."""
    steps = len(episode) // 2 * 2
    observations = {key: value[: steps + 1 : 2] for key, value in _obs(episode)}
    return replace(
        episode, observations=observations, actions=episode.actions[:steps:2], rewards=episode.rewards[:steps:2]
    )


@cache
def pendulum(policy: str) -> Source:
    return record("Pendulum-v1", 20, policy)


@cache
def cartpole(policy: str) -> Source:
    return record("CartPole-v1", 150, policy)


@cache
def cheetah(policy: str) -> Source:
    return record("HalfCheetah-v5", 20, policy, steps=300)


@cache
def lander(policy: str) -> Source:
    return record("LunarLander-v3", 40, policy)


@cache
def images(policy: str) -> Source:
    """1500 frames of a rendered pendulum, 64 x 64 x 3."""
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env.unwrapped.screen_dim = 64
    rng = np.random.default_rng(0)
    clips = []
    for i in range(15):
        frames = []
        env.reset(seed=i)
        smooth = np.zeros(1)
        actions, rewards = [], []
        for t in range(101):
            frames.append(np.asarray(env.render()))
            if t == 100:
                break
            smooth = 0.9 * smooth + np.sqrt(1 - 0.9**2) * rng.normal(size=1)
            actions.append(choose(env.action_space, smooth if policy == "smooth" else None, rng))
            rewards.append(float(env.step(actions[-1])[1]))
        clips.append(Episode({"pixels": np.stack(frames)}, np.stack(actions), np.asarray(rewards), False, True))
    source = source_of(clips, describe(env.action_space))
    leaf = {"type": "Box", "shape": [64, 64, 3], "dtype": "uint8", "low": 0.0, "high": 255.0}
    return replace(source, observation_space={"pixels": leaf})


def closed_loop(act: Act, noise: float = 0.0, episodes: int = 40, steps: int = 100, seed: int = 0) -> Source:
    """A damped mass on a spring (position, velocity), pushed by actions `act(observation, rng)` of shape (1,)."""
    rng = np.random.default_rng(seed)
    dynamics = np.array([[1.0, 0.1], [-0.1, 0.98]])
    runs = []
    for _ in range(episodes):
        state = rng.normal(size=2)
        states, actions = [state], []
        for _ in range(steps):
            action = np.asarray(act(state, rng))
            state = dynamics @ state + np.array([0.0, 0.1]) * action + noise * rng.normal(size=2)
            states.append(state)
            actions.append(action)
        runs.append(
            Episode(
                {"observation": np.stack(states).astype(np.float32)},
                np.stack(actions).reshape(steps, 1).astype(np.float32),
                np.zeros(steps),
                False,
                True,
            )
        )
    return source_of(runs)
