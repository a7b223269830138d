"""Rows of real simulators as flat files hold them, cut into episodes rightly or wrongly."""

from functools import cache

import numpy as np

from tests.data.check.recordings import record, source_of
from worldmodel.data.episode import Episode, Source

SIMULATORS = {"Pendulum-v1": (24, 200), "CartPole-v1": (60, 500), "Acrobot-v1": (20, 500), "HalfCheetah-v5": (20, 300)}


@cache
def rows(env_id: str, seed: int = 0, policy: str = "uniform") -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """(observations, actions, where an episode begins or ends, action space): a row a step, final observations lost."""
    episodes, steps = SIMULATORS[env_id]
    source = record(env_id, episodes, policy, seed, steps)
    parts = [episode for _, episode in source.episodes()]
    observations = np.concatenate([part.observations["observation"][:-1] for part in parts])
    actions = np.concatenate([part.actions for part in parts])
    return observations, actions, np.cumsum([0] + [len(part) for part in parts]), source.action_space


def cut(observations: np.ndarray, actions: np.ndarray, cuts: np.ndarray, space: dict) -> Source:
    """The rows between cuts as episodes; the last row of each is its final observation."""
    spans = [(i, j) for i, j in zip(cuts[:-1], cuts[1:], strict=True) if j - i > 1]
    parts = [
        Episode({"observation": observations[i:j]}, actions[i : j - 1], np.zeros(j - i - 1), False, True)
        for i, j in spans
    ]
    return source_of(parts, space)


def misplaced(cuts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The inner cuts a few rows early or late: all alike, or each by another number."""
    alike = rng.random() < 0.5
    off = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4], () if alike else len(cuts) - 2)
    return np.concatenate([cuts[:1], cuts[1:-1] + off, cuts[-1:]])
