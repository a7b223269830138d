"""Checkpoints that act: their world model, and environments that fit it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.agents.agent import Chooser, ModelAgent
from worldmodel.agents.imagined_policy import ImaginedPolicy, rebuilt_policy
from worldmodel.agents.planner import Planner
from worldmodel.agents.search import Categoricals, Gaussians, Plan
from worldmodel.data import spaces
from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import Json, describe
from worldmodel.envs.make import Simulator, make_simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.render import frame_size, prepare_display
from worldmodel.errors import UserError, at_least
from worldmodel.model import Model
from worldmodel.restore import ARGUMENTS, rebuilt
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.runs.files import check_readable


@dataclass(frozen=True)
class Trained:
    """A world model, and how its data shows the environment."""

    path: Path  # of the checkpoint
    model: Model  # in evaluation mode, without gradients
    layout: Layout
    env_id: str
    collected: dict[str, Any]  # the options of the collection; empty if the data has another source
    arguments: dict[str, Any]  # of the model
    policy: ImaginedPolicy | None = None  # trained in the model, in a checkpoint of `imagine`

    def planner(self, horizon: int, goal: str | None = None, **options: Any) -> Planner:
        """A `Planner` of H steps with these options; the goal is numbers separated by commas, or a .npy file.

        Raises:
            UserError: if the action space is unsupported, or the goal is not an observation of the model.
        """
        at_least(1, "--", horizon=horizon)
        like = self.model.obs_norm.mean
        place = None
        if goal is not None:
            with torch.no_grad():
                place = self.model.place(self.model.encode(like.new_tensor(self._observation(goal))))
        fresh = fresh_plan(self.layout.action_space, horizon, like)
        return Planner(self.model, fresh, goal=place, value=self.policy and self.policy.value, **options)

    def agent(self, observed: Observed, chooser: Chooser) -> ModelAgent:
        """An agent with the observations that `observed` picks."""
        return ModelAgent(self.model, self.layout, observed, chooser)

    def _observation(self, goal: str) -> np.ndarray:
        try:
            from_file = goal.endswith(".npy")
            values = np.load(check_readable(Path(goal))).ravel() if from_file else np.array(goal.split(","), float)
        except (OSError, ValueError) as error:
            raise UserError(f"--goal {goal}: give numbers separated by commas, or a .npy file: {error}") from error
        if len(values) != self.layout.obs_dim:
            raise UserError(
                f"--goal {goal} has {len(values)} entries, an observation of {self.path} has {self.layout.obs_dim}"
            )
        return self.layout.difference(values)


def read_trained(path: Path, trust: bool = False) -> Trained:
    """The world model in a checkpoint file of `fit` or `imagine`; its own code is run if the user trusts it.

    Raises:
        UserError: if the checkpoint cannot act.
    """
    checkpoint = read_checkpoint(path)
    own_code = {"trust": trust, "recorded": checkpoint.get("parts")}
    arguments, data = checkpoint["hyper_parameters"], checkpoint.get("EpisodeDataModule", {}).get("data", {})
    if arguments.get("objective") == "tokens":
        raise UserError(f"{path} predicts tokens and has no rewards to act for: choose another --ckpt")
    if "observation_space" not in data:
        raise UserError(f"{path} does not hold the spaces of its data: train it with this version of the program")
    spaces.check_spaces(data["observation_space"], data.get("action_space"), str(path))
    if "env_id" not in data:
        raise UserError(f"{path} does not say which environment its data comes from: it is damaged")
    policy = None
    if "world_arguments" in arguments:
        policy = rebuilt_policy(arguments, checkpoint["state_dict"], path, **own_code).requires_grad_(False)
    own = {name: value for name, value in arguments.get("world_arguments", arguments).items() if name in ARGUMENTS}
    model = policy.world if policy else rebuilt(arguments, checkpoint["state_dict"], path, **own_code)
    model.requires_grad_(False)
    layout = Layout(data["observation_space"], data["action_space"])
    return Trained(path, model, layout, data["env_id"], data.get("collect") or {}, own, policy)


def check_env(trained: Trained, named: str | None, how: str) -> str:
    """The environment to act in: the one that the user named, else that of the model's data.

    Args:
        trained: the model that will act.
        named: by the user.
        how: the user trusts the checkpoint's own environment.

    Raises:
        UserError: if to make it would import what the checkpoint names.
    """
    settings, env_id = trained.collected, named or trained.env_id
    if named is None and ":" in env_id:
        raise UserError(
            f"{trained.path} names the environment {env_id}, which imports Python code: where you trust it, {how}"
        )
    kwargs = settings.get("env_kwargs") if settings.get("env_id") == env_id else None
    if ":" in str(list(tree_leaves(kwargs or {}))):
        raise UserError(
            f"{trained.path} makes {env_id} with {kwargs}, which may import Python code: where you trust it, {how}"
        )
    return env_id


def environments(
    trained: Trained, env_id: str, num_envs: int, observe: list[int] | list[str] | None = None, film: bool = False
) -> tuple[Simulator, Observed]:
    """Environments with their own time limit, observed as in the model's data.

    Args:
        trained: the model that will act.
        env_id: of Gymnasium's registry, or module:ID.
        num_envs: N.
        observe: the model's entries or keys; None: as in the collection of its data.
        film: make environments that can be rendered.

    Raises:
        UserError: if there is no such environment, or it does not fit the model.
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
    """Pick the model's part of the observations of one environment's space.

    Raises:
        UserError: if the spaces do not fit the model; it names both sizes.
    """
    settings, layout = trained.collected, trained.layout
    chosen = settings.get("observe") if observe is None else observe
    observed = Observed(observations, chosen, settings.get("pixels") is not None, bool(settings.get("keep_state")))
    theirs = Layout(observed.space, describe(actions))
    if theirs.obs_dim != layout.obs_dim or [*theirs.vectors] != [*layout.vectors] or theirs.images != layout.images:
        raise UserError(
            f"{name} does not fit {trained.path}: it gives {theirs.obs_dim} entries of an observation"
            f" ({spaces.in_words(observed.space)}), the model takes {layout.obs_dim}"
            f" ({spaces.in_words(layout.observation_space)}); --observe 0,2 picks entries"
        )
    if theirs.action_dim != layout.action_dim or theirs.action_space["type"] != layout.action_space["type"]:
        raise UserError(
            f"{name} does not fit {trained.path}: it takes {theirs.action_dim} entries of an action"
            f" ({spaces.in_words(theirs.action_space)}), the model has {layout.action_dim}"
            f" ({spaces.in_words(layout.action_space)})"
        )
    return observed


def fresh_plan(action_space: Json, horizon: int, like: Tensor) -> Callable[[int], Plan]:
    """A function that makes an episode's first plan for a number of lanes: any action of the space.

    Args:
        action_space: a leaf, see data.spaces.
        horizon: H.
        like: a tensor of the dtype and device of the actions.

    Raises:
        UserError: if the space has no bounds, or is neither Box, Discrete nor MultiDiscrete.
    """
    if action_space["type"] == "Box":
        size = spaces.num_features(action_space)
        bounds = [np.broadcast_to(np.array(action_space.get(side), float), (size,)) for side in ("low", "high")]
        if not np.isfinite(bounds).all():
            raise UserError(
                "planning needs bounded actions, and this Box has none: wrap the environment (RescaleAction)"
            )
        low, high = (torch.tensor(bound).to(like) for bound in bounds)
        return lambda lanes: Gaussians.fresh(lanes, horizon, low, high)
    sizes = {"Discrete": [action_space.get("n")], "MultiDiscrete": np.ravel(action_space.get("nvec", 0)).tolist()}
    if action_space["type"] not in sizes:
        raise UserError(f"planning supports Box, Discrete and MultiDiscrete actions, not {action_space['type']}")
    return lambda lanes: Categoricals.fresh(lanes, horizon, sizes[action_space["type"]], like)
