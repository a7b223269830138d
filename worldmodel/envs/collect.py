"""Episodes out of a simulator into a dataset folder."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import gymnasium as gym
import numpy as np

from worldmodel.data.episodes import Episode
from worldmodel.data.spaces import describe
from worldmodel.data.store import EpisodeWriter
from worldmodel.envs.make import env_entry, make_vector_env, observed_space
from worldmodel.envs.policies import make_policy
from worldmodel.errors import UserError


class CollectOptions(TypedDict):
    """What to collect, as `worldmodel collect` takes it and as the manifest keeps it."""

    env_id: str  # of Gymnasium's registry, or module:ID where a module registers it
    steps: int  # transitions in all
    seed: NotRequired[int]
    policy: NotRequired[str]  # uniform, smooth, module:function
    observe: NotRequired[list[int] | None]  # entries of the observation that are kept; None: all
    max_episode_steps: NotRequired[int | None]  # None: the environment's own limit
    env_kwargs: NotRequired[dict[str, Any]]  # further arguments of gymnasium.make
    num_envs: NotRequired[int]


DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "policy": "uniform",
    "observe": None,
    "max_episode_steps": None,
    "env_kwargs": {},
    "num_envs": 8,
}


def collect(
    options: CollectOptions,
    out: Path,
    vectorization: Literal["sync", "async"] = "sync",
    keep_interrupted: bool = True,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Step an environment and write its episodes to `out`; returns the manifest.

    The same options give the same files. Exactly `steps` transitions are recorded, shared evenly by the environments;
    an episode that is not over by then is kept and marked truncated.

    Args:
        options: see `CollectOptions`.
        out: a folder without a dataset.
        vectorization: step the environments in this process, or each in its own.
        keep_interrupted: on Ctrl-C, finish the dataset with the episodes so far before the exception goes on.
        on_steps: called with the number of new transitions after every step.

    Raises:
        UserError: if the environment, policy, observation entries or folder do not do.
    """
    settings: dict[str, Any] = {**DEFAULTS, **options}
    for name, least in (("steps", 1), ("num_envs", 1), ("max_episode_steps", 1), ("seed", 0)):
        if settings[name] is not None and settings[name] < least:
            raise UserError(f"--{name} {settings[name]}: it must be at least {least}")
    num_envs = min(settings["num_envs"], settings["steps"])
    envs = make_vector_env(
        settings["env_id"], num_envs, settings["max_episode_steps"], settings["env_kwargs"], vectorization
    )
    try:
        policy = make_policy(settings["policy"], envs.single_action_space, num_envs, settings["seed"])
        observed = observed_space(envs.single_observation_space, settings["observe"])
        manifest = {
            "collect": settings,
            "versions": {"gymnasium": gym.__version__, "worldmodel": version("worldmodel")},
            "env_entry_point": env_entry(settings["env_id"]),
            "observation_space": describe(observed),
            "action_space": describe(envs.single_action_space),
        }
        writer = EpisodeWriter(out, manifest)
        try:
            _record(envs, policy, settings, writer, on_steps)
        except KeyboardInterrupt:
            if keep_interrupted:
                writer.finish()
            raise
        return writer.finish()
    finally:
        envs.close()


def _record(
    envs: gym.vector.VectorEnv,
    policy: Callable[[np.ndarray, np.ndarray], np.ndarray],
    settings: dict[str, Any],
    writer: EpisodeWriter,
    on_steps: Callable[[int], None],
) -> None:
    observe = settings["observe"]
    quota, extra = divmod(settings["steps"], envs.num_envs)
    left = np.array([quota + (i < extra) for i in range(envs.num_envs)])
    observations, _ = envs.reset(seed=settings["seed"])
    is_first = np.ones(envs.num_envs, dtype=bool)
    recordings = [_Recording(o, observe) for o in observations]
    ended = np.zeros(envs.num_envs, dtype=bool)
    while left.any():
        actions = np.asarray(policy(observations, is_first))
        if actions.shape != envs.action_space.shape:
            raise UserError(f"the policy gave actions of shape {actions.shape}; it must be {envs.action_space.shape}")
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        recorded = 0
        for i in np.flatnonzero(left):
            if ended[i]:  # this step only reset the environment; its action was not taken
                recordings[i] = _Recording(observations[i], observe)
                continue
            left[i] -= 1
            recorded += 1
            recordings[i].add(actions[i], rewards[i], observations[i])
            over = terminated[i] or truncated[i]
            if over or not left[i]:
                writer.add(recordings[i].episode(bool(terminated[i]), bool(truncated[i] or not over)))
        is_first, ended = ended, terminated | truncated
        on_steps(recorded)


class _Recording:
    """An episode that is under way, in arrays that double when they are full: no Python object for each step."""

    def __init__(self, observation: np.ndarray, observe: list[int] | None) -> None:
        self.observe = observe
        self.length = 0
        self.observations = np.empty((64, *self._seen(observation).shape), np.asarray(observation).dtype)
        self.observations[0] = self._seen(observation)
        self.actions: np.ndarray | None = None
        self.rewards = np.empty(64)

    def add(self, action: np.ndarray, reward: float, observation: np.ndarray) -> None:
        if self.actions is None:
            self.actions = np.empty((64, *np.shape(action)), np.asarray(action).dtype)
        if self.length + 1 == len(self.observations):
            grown = [np.concatenate([a, np.empty_like(a)]) for a in (self.observations, self.actions, self.rewards)]
            self.observations, self.actions, self.rewards = grown
        self.actions[self.length], self.rewards[self.length] = action, reward
        self.length += 1
        self.observations[self.length] = self._seen(observation)

    def episode(self, terminated: bool, truncated: bool) -> Episode:
        assert self.actions is not None, "an episode has at least one transition"
        steps = self.length
        values = self.observations[: steps + 1].copy(), self.actions[:steps].copy(), self.rewards[:steps].copy()
        return Episode(*values, terminated, truncated)

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(observation) if self.observe is None else observation[self.observe]
