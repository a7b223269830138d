"""What acts in environments and remembers: one hidden state for each environment, reset where an episode starts.

Both agents are a Policy of envs.policies, `(observations, is_first) -> actions` for all environments at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.data import spaces
from worldmodel.data.episodes import Layout
from worldmodel.envs.observe import ObservationVectors, Observed
from worldmodel.model import Model

# latents z (B, Z), the states before them h (B, D), is_first (B,) -> actions (B, A) in the units of the data
Chooser = Callable[[Tensor, Tensor, Tensor], Tensor]


class ModelAgent:
    """A world model that acts with the actions of a chooser: a planner or an actor.

    Args:
        model: in evaluation mode.
        layout: of the model's observations and actions.
        observed: picks the model's part of the environments' observations.
        chooser: of the actions.
    """

    def __init__(self, model: Model, layout: Layout, observed: Observed, chooser: Chooser) -> None:
        self.model, self.layout, self.observed, self.chooser = model, layout, observed, chooser
        self.carry: Tensor | None = None  # (N, C), before the next frame

    @torch.no_grad()
    def __call__(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
        model = self.model
        frames = torch.from_numpy(self.layout.frames(self.observed(observations))).to(model.obs_norm.mean)
        frames, first = frames.unsqueeze(1), torch.from_numpy(is_first).to(frames.device)
        unknown = frames.new_zeros(len(frames), 1, self.layout.action_dim)  # z does not depend on it
        seen = model.see(model.obs_norm(frames), unknown, first.unsqueeze(1), self.carry)
        z, before = seen.z[:, 0], frames.new_zeros(len(frames), model.state_dim) if seen.h is None else seen.h
        before = before.masked_fill(first.unsqueeze(-1), 0.0)
        action = self.chooser(z, before, first)
        self.carry = model.advance(z, before, model.action_norm(action))
        return spaces.values(action.cpu().numpy(), self.layout.action_space)


class PolicyAgent:
    """An actor-critic that acts.

    Args:
        policy: the actor-critic.
        vectors: of the environments' observations.
        num_envs: N.
        deterministic: take the most likely action (of a Gaussian the mean) instead of drawing one.
        generator: for the draws; None: torch's default generator.
        reset_every: K; the state is also reset at every K-th frame of an episode, to measure what memory contributes.
    """

    def __init__(
        self,
        policy: ActorCritic,
        vectors: ObservationVectors,
        num_envs: int,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        reset_every: int | None = None,
    ) -> None:
        self.policy, self.vectors = policy, vectors
        self.deterministic, self.generator, self.reset_every = deterministic, generator, reset_every
        self.device = policy.obs_norm.mean.device
        self.h = policy.initial_state(torch.zeros(num_envs, 1, device=self.device))  # (N, D), after the last frame
        self.last_action = torch.zeros(num_envs, policy.last_action_dim, device=self.device)  # features
        self._age = np.zeros(num_envs, np.int64)

    def __call__(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
        self._age = np.where(is_first, 0, self._age + 1)
        if self.reset_every is not None:
            is_first = is_first | (self._age % self.reset_every == 0)
        obs, mask = self.sense(observations)
        return self.act(obs, mask, torch.from_numpy(is_first).to(self.device))[1]

    def sense(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """Observations as vectors (N, O), and the mask of valid choices (N, P) if there is one."""
        mask = self.vectors.mask(observations)
        obs = torch.from_numpy(self.vectors(observations)).to(self.device)
        return obs, None if mask is None else torch.from_numpy(mask).to(self.device)

    @torch.inference_mode()
    def act(self, obs: Tensor, mask: Tensor | None, is_first: Tensor) -> tuple[Tensor, np.ndarray]:
        """Choose actions: as drawn (N, K), and as the environments take them (N, ...)."""
        policy = self.policy
        self.h = policy.advance(obs, self.last_action, is_first, self.h)
        distribution = policy.distribution(self.h, mask)
        action = distribution.mode if self.deterministic else distribution.sample(self.generator)
        if policy.last_action_dim:
            self.last_action = policy.actions.features(action)
        return action, policy.actions.to_env(action).cpu().numpy()
