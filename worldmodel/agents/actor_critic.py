"""A policy with memory and its critic, as one plain torch module, in the units of the environment."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel.agents.distributions import ActionSpace, Categorical, Gaussian
from worldmodel.cells import Cell, check_rule, make_cell
from worldmodel.cells.recurrence import advance, initial_state, previous_states, states
from worldmodel.cells.update import Memoryless
from worldmodel.errors import at_least
from worldmodel.nets import MLP, RunningNormalizer, observation_encoder

NONE = "none"  # the rule of a policy without memory
RECENT = 0.1  # weight of the newest returns in their statistics, which change as the policy improves
FIRST_LOG_STD = math.log(0.5)  # on a scale where the bounds of an action are -1 and 1
OBS_CLIP = 10.0  # standard deviations from the mean at which observations are clipped


class ActorCritic(nn.Module):
    """Encoder, memory, actor and critic: h_t = memory(encoder(o_t), a_{t-1}, h_{t-1}), and both heads read h_t.

    The memory sees the action before the frame, zeros at an episode's start. The critic's output is on a normalised
    scale; `value` is in the units of the rewards.

    Args:
        obs_dim: O, entries of an observation: vectors, then the pixels of the images.
        action_space: as plain data, see distributions.ActionSpace; from the environment.
        images: [H, W, C] of each image in the observation.
        rule: Update rule of the memory, a name in RULES, or your own, file.py:name; `none`: a
            feed-forward layer of the same width.
        latent_dim: Width of the encoded observation.
        hidden_dim: Width of the hidden state.
        layers: Layers of the update network, 1 or 2 (gru, lstm and rules that see the input alone: stacked).
        gate_bias: Initial bias of the gate.
        width: Width of the hidden layers of encoder, actor and critic.
        depth: Hidden layers of the encoder.
        head_depth: Hidden layers of actor and critic.
        channels: Channels of the first convolution, for images.

    Raises:
        UserError: for an unknown rule or type of action, or if a size is too small.
    """

    def __init__(
        self,
        obs_dim: int,
        action_space: dict[str, Any],
        images: list[tuple[int, int, int]] | None = None,
        rule: str = "gated_norm",
        latent_dim: int = 64,
        hidden_dim: int = 64,
        layers: int = 1,
        gate_bias: float = -1.0,
        width: int = 64,
        depth: int = 1,
        head_depth: int = 1,
        channels: int = 16,
    ) -> None:
        super().__init__()
        at_least(2, "model.", hidden_dim=hidden_dim)
        at_least(1, "model.", latent_dim=latent_dim, width=width, channels=channels)
        at_least(0, "model.", depth=depth, head_depth=head_depth)
        check_rule(rule, NONE)
        self.actions = ActionSpace(action_space)
        self.remembers = rule != NONE
        self.last_action_dim = self.actions.dim if self.remembers else 0  # else one step of memory
        self.obs_norm, self.return_norm = RunningNormalizer(obs_dim), RunningNormalizer(1, RECENT)
        self.encoder = observation_encoder(obs_dim, images or [], latent_dim, width, depth, channels)
        inputs = latent_dim + self.last_action_dim
        self.cell: Cell = Memoryless(inputs, hidden_dim)
        if self.remembers:
            self.cell = make_cell(rule, inputs, hidden_dim, layers, gate_bias)
        actor_outputs = self.actions.dim if self.actions.is_box else self.actions.num_outputs
        self.actor = MLP(self.cell.read_dim, actor_outputs, width, head_depth)
        self.critic = MLP(self.cell.read_dim, 1, width, head_depth)
        # initially actions are about equally likely, or half as wide as a Box (Andrychowicz et al. 2021, 2006.05990)
        self.log_std = nn.Parameter(torch.full((self.actions.dim,), FIRST_LOG_STD)) if self.actions.is_box else None
        with torch.no_grad():
            last = cast(nn.Linear, self.actor[-1])
            last.weight.mul_(0.01)
            last.bias.zero_()

    @property
    def state_dim(self) -> int:
        """D, width of the state."""
        return self.cell.state_dim

    def encode(self, obs: Tensor) -> Tensor:
        """Observations (..., O) -> latents (..., Z)."""
        return self.encoder(self.obs_norm(obs).clamp(-OBS_CLIP, OBS_CLIP))

    def initial_state(self, obs: Tensor) -> Tensor:
        """Zeros (B, D) for the lanes of obs (B, ..., O)."""
        return initial_state(self.cell, obs.view(len(obs), 1, -1))

    def states(self, obs: Tensor, last_action: Tensor, is_first: Tensor, h: Tensor | None = None) -> Tensor:
        """The states after the frames of a segment, (B, T, D).

        Args:
            obs: (B, T, O).
            last_action: (B, T, A), features of the action before each frame; ignored where a frame is first.
            is_first: (B, T) bool.
            h: (B, D), the state before the first frame; None: zeros.
        """
        a = self._last_action(last_action, is_first)
        return rearrange(states(self.cell, self.encode(obs), a, is_first, h), "t b d -> b t d")

    def advance(self, obs: Tensor, last_action: Tensor, is_first: Tensor, h: Tensor) -> Tensor:
        """The state after one frame: obs (B, O), last_action (B, A), is_first (B,), h (B, D) -> (B, D)."""
        return advance(self.cell, self._inputs(obs, last_action, is_first), h, is_first)

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The latents (B, T, Z), the states and the carry (B, D); arguments as in `states`."""
        after = self.states(obs, action, is_first, h)
        return self.encode(obs), after, after[:, -1].detach().clone()

    def gate(self, batch: Mapping[str, Tensor], h: Tensor) -> Tensor | None:
        """The share of each state entry that a frame overwrites (B, T, D), given the states h (B, T, D)."""
        before = previous_states(h, batch["is_first"], batch.get("carry"))
        return self.cell.gate(self._inputs(batch["obs"], batch["last_action"], batch["is_first"]), before)

    def _inputs(self, obs: Tensor, last_action: Tensor, is_first: Tensor) -> Tensor:
        return self.cell.project(self.encode(obs), self._last_action(last_action, is_first))

    def _last_action(self, last_action: Tensor, is_first: Tensor) -> Tensor:
        return last_action[..., : self.last_action_dim].masked_fill(is_first.unsqueeze(-1), 0.0)

    def distribution(self, h: Tensor, mask: Tensor | None = None) -> Categorical | Gaussian:
        """Of the next action, from states (..., D) and the mask (..., P) bool of valid choices."""
        outputs = self.actor(self.cell.read(h))
        if self.log_std is not None:
            outputs = torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)
        return self.actions.distribution(outputs, mask)

    def normalized_value(self, h: Tensor) -> Tensor:
        """The critic's output (...) for states (..., D)."""
        return self.critic(self.cell.read(h)).squeeze(-1)

    def value(self, h: Tensor) -> Tensor:
        """The expected return (...) after states (..., D)."""
        return self.return_norm.inverse(self.critic(self.cell.read(h))).squeeze(-1)

    def normalize_returns(self, returns: Tensor) -> Tensor:
        """Returns (...) on the critic's scale."""
        return self.return_norm(returns.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def update_returns(self, returns: Tensor, valid: Tensor) -> None:
        """Update the critic's scale with the `valid` returns (B, T) without changing `value`.

        PopArt, van Hasselt et al. 2016, arXiv 1602.07714, equations 5 and 6.
        """
        mean, scale = self.return_norm.mean.clone(), self.return_norm.scale.clone()
        self.return_norm.update(returns.unsqueeze(-1), valid)
        last = cast(nn.Linear, self.critic[-1])
        last.weight.mul_((scale / self.return_norm.scale).unsqueeze(-1))
        last.bias.mul_(scale).add_(mean - self.return_norm.mean).div_(self.return_norm.scale)
