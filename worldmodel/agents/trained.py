"""Checkpoints that act: what they were trained on, and the environments that they fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.agents.agent import Agent, Chooser, fresh_plan
from worldmodel.agents.imagined_policy import ImaginedPolicy, rebuilt_policy
from worldmodel.agents.planner import Planner
from worldmodel.data import spaces
from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import describe
from worldmodel.envs.make import Simulator, make_simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.render import frame_size, prepare_display
from worldmodel.errors import UserError
from worldmodel.model import ARGUMENTS, Model, rebuilt
from worldmodel.runs.checkpoint import read_checkpoint


@dataclass(frozen=True)
class Trained:
    """A world model, and how its data saw the environment."""

    path: Path  # of the checkpoint
    model: Model  # in evaluation mode, without gradients
    layout: Layout
    env_id: str
    collected: dict[str, Any]  # the options of the collection; empty where the data came from elsewhere
    arguments: dict[str, Any]  # of the model
    policy: ImaginedPolicy | None = None  # that was trained in the model, where one was

    def planner(self, horizon: int, goal: str | None = None, **options: Any) -> Planner:
        """A `Planner` of H steps with these options; a goal is numbers with commas between, or a .npy file of them.

        Raises:
            UserError: if the actions cannot be planned, or the goal is no observation of the model.
        """
        if horizon < 1:
            raise UserError(f"--horizon {horizon}: it must be at least 1")
        like = self.model.obs_norm.mean
        latent = None if goal is None else self.model.encode(like.new_tensor(self._observation(goal)))
        fresh = fresh_plan(self.layout.action_space, horizon, like)
        return Planner(self.model, fresh, goal=latent, value=self.policy and self.policy.value, **options)

    def agent(self, observed: Observed, chooser: Chooser) -> Agent:
        """Acts on what `observed` picks."""
        return Agent(self.model, self.layout, observed, chooser)

    def _observation(self, goal: str) -> np.ndarray:
        try:
            values = np.load(goal).ravel() if goal.endswith(".npy") else np.array(goal.split(","), float)
        except (OSError, ValueError) as error:
            raise UserError(f"--goal {goal}: give numbers with commas between, or a .npy file: {error}") from error
        if len(values) != self.layout.obs_dim:
            raise UserError(
                f"--goal {goal} has {len(values)} entries, an observation of {self.path} has {self.layout.obs_dim}"
            )
        return values.astype(np.float32)


def read_trained(path: Path) -> Trained:
    """The world model of a checkpoint file, of `fit` or of `imagine`.

    Raises:
        UserError: if it is no world model that can act.
    """
    checkpoint = read_checkpoint(path)
    arguments, data = checkpoint["hyper_parameters"], checkpoint.get("EpisodeDataModule", {}).get("data", {})
    if arguments.get("objective") == "tokens":
        raise UserError(f"{path} predicts tokens, and has no rewards to act for: choose another --ckpt")
    if "observation_space" not in data:
        raise UserError(f"{path} does not say which spaces its data has: train it with this version of the program")
    policy = None
    if "world_arguments" in arguments:
        policy = rebuilt_policy(arguments, checkpoint["state_dict"], path).requires_grad_(False)
    own = {name: value for name, value in arguments.get("world_arguments", arguments).items() if name in ARGUMENTS}
    model = policy.world if policy else rebuilt(arguments, checkpoint["state_dict"], path).requires_grad_(False)
    layout = Layout(data["observation_space"], data["action_space"])
    return Trained(path, model, layout, data["env_id"], data.get("collect") or {}, own, policy)


def environments(
    trained: Trained, env_id: str, num_envs: int, observe: list[int] | list[str] | None = None, film: bool = False
) -> tuple[Simulator, Observed]:
    """Environments side by side, with their own time limit, seen as the model's data was.

    Args:
        trained: the model that is to act.
        env_id: of Gymnasium's registry, or module:ID.
        num_envs: N.
        observe: entries or keys that the model sees; None: as its data was collected.
        film: they can be rendered.

    Raises:
        UserError: if there is no such environment, or it does not fit the model; it names both sizes.
    """
    settings = trained.collected
    same = settings.get("env_id") in (None, env_id)
    kwargs = dict(settings.get("env_kwargs") or {}) if same else {}
    pixels = frame_size(settings.get("pixels"))
    if film:
        prepare_display()
        kwargs["render_mode"] = "rgb_array"
    simulator = make_simulator(env_id, num_envs, env_kwargs=kwargs, pixels=pixels)
    envs = simulator.envs
    try:
        return simulator, fits(trained, envs.single_observation_space, envs.single_action_space, observe, env_id)
    except UserError:
        envs.close()
        raise


def fits(
    trained: Trained,
    observations: gym.Space,
    actions: gym.Space,
    observe: list[int] | list[str] | None = None,
    name: str = "the environment",
) -> Observed:
    """What picks the model's part out of the observations of one environment's space.

    Raises:
        UserError: if the spaces do not fit the model; it names both sizes.
    """
    settings, layout = trained.collected, trained.layout
    chosen = settings.get("observe") if observe is None else observe
    observed = Observed(observations, chosen, settings.get("pixels") is not None, bool(settings.get("keep_state")))
    there = Layout(observed.space, describe(actions))
    if there.obs_dim != layout.obs_dim or [*there.vectors] != [*layout.vectors] or there.images != layout.images:
        raise UserError(
            f"{name} does not fit {trained.path}: it gives {there.obs_dim} entries of an observation"
            f" ({spaces.in_words(observed.space)}), the model takes {layout.obs_dim}"
            f" ({spaces.in_words(layout.observation_space)}); --observe 0,2 picks entries"
        )
    if there.action_dim != layout.action_dim or there.action_space["type"] != layout.action_space["type"]:
        raise UserError(
            f"{name} does not fit {trained.path}: it takes {there.action_dim} entries of an action"
            f" ({spaces.in_words(there.action_space)}), the model has {layout.action_dim}"
            f" ({spaces.in_words(layout.action_space)})"
        )
    return observed
