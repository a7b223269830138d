"""Checkpoints of this program in stable-worldmodel's evaluator (`pip install 'worldmodel[swm]'`).

>>> import stable_worldmodel as swm
>>> world = swm.World("Pendulum-v1", num_envs=8, add_pixels=False, max_episode_steps=200)
>>> world.set_policy(WorldModelPolicy("runs/pendulum/gated_norm-Pendulum-v1-s0", horizon=20, candidates=64))
>>> world.evaluate(episodes=8, seed=0)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.agents.agent import ModelAgent
from worldmodel.agents.trained import Trained, fits, read_trained
from worldmodel.data.spaces import OBSERVATION
from worldmodel.errors import UserError
from worldmodel.runs.files import find_checkpoint

if TYPE_CHECKING:
    BasePolicy: Any = object
else:
    try:
        from stable_worldmodel.policy import BasePolicy
    except ImportError:  # its evaluator only calls the methods
        BasePolicy = object

STEP = "step_idx"  # key in its infos: (N, 1), 0 where an episode starts


class WorldModelPolicy(BasePolicy):
    """A `stable_worldmodel.policy.BasePolicy` that plans in a checkpoint's model, or acts with its imagined policy.

    It keeps a hidden state for each environment and resets it where an episode starts (`step_idx` of the infos is 0).

    Args:
        checkpoint: a run's folder, or a checkpoint, of `worldmodel fit` or `worldmodel imagine fit`.
        planner: cem or mppi; None: the actor of an imagined run, else cem.
        horizon: H, of a planner.
        trust: run the code of a rule, encoder or decoder that the checkpoint names.
        options: of a planner: goal, candidates, iterations, elites, temperature, persistence, discount, seed.

    Raises:
        UserError: if there is no such checkpoint, or (in `set_env`) the environments do not fit it.
    """

    def __init__(
        self, checkpoint: Path | str, planner: str | None = None, horizon: int = 20, trust: bool = False, **options: Any
    ) -> None:
        if BasePolicy is not object:
            super().__init__()
        self.type = "worldmodel"
        self.env: Any = None
        self.trained: Trained = read_trained(find_checkpoint(Path(checkpoint)), trust)
        own = self.trained.policy if planner is None else None
        self.chooser = own or self.trained.planner(horizon, method=planner or "cem", **options)
        self.agent: ModelAgent | None = None

    def set_env(self, env: Any) -> None:
        """Act in these environments from now on, starting with new episodes."""
        self.env = env
        self.agent = self.trained.agent(
            fits(self.trained, env.single_observation_space, env.single_action_space), self.chooser
        )

    def get_action(self, infos: dict[str, Any], **kwargs: Any) -> np.ndarray:
        """Actions (N, ...); infos has the observations (N, 1, ...) by key, and `step_idx`."""
        if self.agent is None:
            raise UserError("no environment yet: stable-worldmodel's World.set_policy calls set_env")
        if STEP not in infos:
            raise UserError(f"the infos have no {STEP!r}, which marks where episodes start: {', '.join(infos)}")
        is_first = np.asarray(infos[STEP]).reshape(-1) == 0
        keys = self.agent.observed.keys or [OBSERVATION]
        observations = {key: np.asarray(infos[key])[:, -1] for key in keys}
        return self.agent(observations if keys != [OBSERVATION] else observations[OBSERVATION], is_first)
