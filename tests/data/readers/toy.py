"""Canonical episodes with exact dynamics, against which every reader is held."""

from dataclasses import replace

import numpy as np
from toy_env import next_observation, reward_of

from worldmodel.data.episode import Episode

LENGTHS = (5, 1, 12, 3)


def episodes(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Episode]:
    """Episodes of these lengths; every second one is terminated, the others truncated; keys `state` and `pixels`.

    `pixels` (8, 8, 3) spell the state out, so that frames are checked for order too.
    """
    rng = np.random.default_rng(seed)
    return [_episode(length, index % 2 == 0, rng) for index, length in enumerate(lengths)]


def _episode(length: int, terminated: bool, rng: np.random.Generator) -> Episode:
    states = [rng.integers(1, 29, 2).astype(np.float32)]
    actions = rng.integers(-2, 3, (length, 1)).astype(np.float32)
    for action in actions:
        states.append(next_observation(states[-1], action))
    state = np.stack(states)
    rewards = reward_of(state[:-1], actions, state[1:])
    return Episode({"state": state, "pixels": pixels_of(state)}, actions, rewards, terminated, not terminated)


def pixels_of(state: np.ndarray) -> np.ndarray:
    """Frames (N, 8, 8, 3) that hold the state's two numbers."""
    frames = np.zeros((len(state), 8, 8, 3), np.uint8)
    frames[..., 0] = state[:, 0, None, None]
    frames[..., 1] = state[:, 1, None, None]
    return frames


def cut(episode: Episode) -> Episode:
    """The episode without its last transition: what is left where the final observation was not recorded."""
    shorter = {key: values[:-1] for key, values in episode.observations.items()}
    return Episode(shorter, episode.actions[:-1], episode.rewards[:-1], False, True)


def only(episode: Episode, **keys: str) -> Episode:
    """The episode with its observations renamed: new key = old key."""
    return replace(episode, observations={new: episode.observations[old] for new, old in keys.items()})


def is_exact(episode: Episode, key: str = "state") -> bool:
    """Whether every transition obeys o' = f(o, a) and r = r(o, a, o')."""
    states = episode.observations[key]
    after = next_observation(states[:-1], episode.actions)
    rewards = reward_of(states[:-1], episode.actions, states[1:])
    return bool(np.array_equal(after, states[1:]) and np.array_equal(rewards, episode.rewards))


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    """Every array, flag and key is equal, episode by episode."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.observations.keys() == other.observations.keys()
        for key, values in other.observations.items():
            np.testing.assert_array_equal(one.observations[key], values)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)
