"""A world model that acts: a policy with a hidden state for each environment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.search import Categoricals, Gaussians, Plan
from worldmodel.data import spaces
from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import Json
from worldmodel.envs.observe import Observed
from worldmodel.errors import UserError
from worldmodel.model import Model

# latents z (B, Z), the states before them h (B, D), is_first (B,) -> actions (B, A) in the units of the data
Chooser = Callable[[Tensor, Tensor, Tensor], Tensor]


class Agent:
    """A policy, `(observations, is_first) -> actions` on all environments at once, which remembers.

    It encodes what it sees, resets its state where an episode starts, asks the chooser (a planner, an actor), and moves
    its state on with the action that was chosen.

    Args:
        model: in evaluation mode.
        layout: of the observations and actions that the model knows.
        observed: picks these out of what the environments give, as it was done for the data.
        chooser: of the actions.
    """

    def __init__(self, model: Model, layout: Layout, observed: Observed, chooser: Chooser) -> None:
        self.model, self.layout, self.observed, self.chooser = model, layout, observed, chooser
        self.h: Tensor | None = None  # (N, D), before the next frame

    @torch.no_grad()
    def __call__(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
        """Actions (N, ...) of the action space, on observations (N, ...); is_first (N,) bool: an episode starts."""
        frames = torch.from_numpy(self.layout.frames(self.observed(observations))).to(self.model.obs_norm.mean)
        z, first = self.model.encode(frames), torch.from_numpy(is_first).to(frames.device)
        before = self.model.predictor.initial_state(z) if self.h is None else self.h
        before = before.masked_fill(first.unsqueeze(-1), 0.0)
        action = self.chooser(z, before, first)
        _, _, self.h = self.model.predictor(z, before, self.model.action_norm(action))
        return spaces.values(action.cpu().numpy(), self.layout.action_space)


def fresh_plan(action_space: Json, horizon: int, like: Tensor) -> Callable[[int], Plan]:
    """What a planner starts an episode with, for a number of lanes: any action of the space.

    Args:
        action_space: a leaf, see data.spaces.
        horizon: H.
        like: a tensor of the dtype and device that the actions are to have.

    Raises:
        UserError: if the space has no bounds, or is neither Box, Discrete nor MultiDiscrete.
    """
    if action_space["type"] == "Box":
        size = spaces.num_features(action_space)
        bounds = [np.broadcast_to(np.array(action_space[side], float), (size,)) for side in ("low", "high")]
        if not np.isfinite(bounds).all():
            raise UserError(
                "planning needs bounded actions, and this Box has none: wrap the environment (RescaleAction)"
            )
        low, high = (torch.tensor(bound).to(like) for bound in bounds)
        return lambda lanes: Gaussians.fresh(lanes, horizon, low, high)
    sizes = {"Discrete": [action_space.get("n")], "MultiDiscrete": np.ravel(action_space.get("nvec", 0)).tolist()}
    if action_space["type"] not in sizes:
        raise UserError(f"planning knows Box, Discrete and MultiDiscrete actions, not {action_space['type']}")
    return lambda lanes: Categoricals.fresh(lanes, horizon, sizes[action_space["type"]], like)
