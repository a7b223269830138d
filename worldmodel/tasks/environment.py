"""A sequence task as an environment, so that it is collected, kept and read like any other."""

from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.tasks.sequences import make_task


class SequenceEnv(gym.Env[np.int64, np.int64]):
    """Shows one token after the other. There is one action, which does nothing.

    The reward of a step is what a right prediction of the token that it leads to is worth (see envs.sequences); the
    last token ends the episode.

    Args:
        task: a name of sequences.TASKS.
        options: of the task.

    Raises:
        UserError: if it has no such option, or the value does not do.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        self.task = make_task(task, **options)
        self.observation_space = gym.spaces.Discrete(len(self.task.vocabulary))
        self.action_space = gym.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._sequence, self._t = self.task.draw(self.np_random), 0
        return self._sequence.tokens[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        tokens, weight = self._sequence
        worth = float(weight[self._t])
        self._t += 1
        return tokens[self._t], worth, self._t == len(weight), False, {}
