"""A policy with memory in its environments: one state an environment, reset where an episode starts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.envs.as_vectors import AsVectors


class Actor:
    """A Policy of envs.policies: `(observations, is_first) -> actions`, on all environments at once.

    Args:
        policy: decides.
        vectors: what it sees.
        num_envs: N.
        deterministic: the likeliest action, or a Gaussian's mean; else one that is drawn.
        generator: of the draws; None: torch's own.
        reset_every: K; the state starts from zeros at every K-th frame of an episode, which shows what it is worth.
    """

    def __init__(
        self,
        policy: ActorCritic,
        vectors: AsVectors,
        num_envs: int,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        reset_every: int | None = None,
    ) -> None:
        self.policy, self.vectors = policy, vectors
        self.deterministic, self.generator, self.reset_every = deterministic, generator, reset_every
        self.device = policy.obs_norm.mean.device
        nothing = torch.zeros(num_envs, 1, device=self.device)
        self.h = policy.initial_state(nothing)  # (N, D), behind the last frame that was seen
        self.last_action = torch.zeros(num_envs, policy.last_action_dim, device=self.device)  # features
        self._age = np.zeros(num_envs, np.int64)

    def __call__(self, observations: Any, is_first: np.ndarray) -> np.ndarray:
        self._age = np.where(is_first, 0, self._age + 1)
        if self.reset_every is not None:
            is_first = is_first | (self._age % self.reset_every == 0)
        obs, mask = self.sense(observations)
        return self.act(obs, mask, torch.from_numpy(is_first).to(self.device))[1]

    def sense(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """(N, O), and the mask (N, P) where there is one."""
        mask = self.vectors.mask(observations)
        obs = torch.from_numpy(self.vectors(observations)).to(self.device)
        return obs, None if mask is None else torch.from_numpy(mask).to(self.device)

    @torch.inference_mode()
    def act(self, obs: Tensor, mask: Tensor | None, is_first: Tensor) -> tuple[Tensor, np.ndarray]:
        """See a frame and decide: the action as it was drawn (N, K), and as the environments take it."""
        policy = self.policy
        self.h = policy.advance(obs, self.last_action, is_first, self.h)
        distribution = policy.distribution(self.h, mask)
        action = distribution.mode if self.deterministic else distribution.sample(self.generator)
        if policy.last_action_dim:
            self.last_action = policy.actions.features(action)
        return action, policy.actions.to_env(action).cpu().numpy()
