"""The experience that a policy is trained on: T steps of every environment, cut into chunks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.losses import gae, masked_mean


@dataclass
class Experience:
    """Segments of N lanes as in batch.py, each with the L frames before it.

    Frames are (N, L + T + 1, ...), steps (N, T, ...). The frames before the first experience are zeros.
    """

    obs: Tensor  # (..., O)
    last_action: Tensor  # (..., A) features of the action before the frame
    is_first: Tensor  # (...) bool
    before: Tensor  # (..., D) the state before the frame
    mask: Tensor | None  # (N, T, P) bool
    action: Tensor  # (N, T, K) as drawn
    reward: Tensor  # (N, T)
    terminated: Tensor  # (N, T) bool
    valid: Tensor  # (N, T) bool

    @property
    def earlier(self) -> int:
        """L."""
        return self.obs.shape[1] - self.action.shape[1] - 1

    @torch.no_grad()
    def refresh(self, policy: ActorCritic) -> None:
        """Recompute the stored states with the current weights, from the one before the first frame."""
        h = policy.states(self.obs, self.last_action, self.is_first, self.before[:, 0])
        self.before = torch.cat([self.before[:, :1], h[:, :-1]], dim=1)

    @torch.no_grad()
    def assess(self, policy: ActorCritic, discount: float, gae_lambda: float) -> dict[str, Tensor]:
        """What training needs of the policy that acted, (N, T) each.

        log_prob; value and target on the critic's scale, which is updated with the targets first; advantage, with mean
        0 and deviation 1 over the valid steps; and value_error, the critic's squared error before training.
        """
        h = self._states(policy)
        value = policy.value(h)
        advantage = gae(self.reward, value, ~self.terminated, self.valid, discount, gae_lambda)
        target = advantage + value[:, :-1]
        policy.update_returns(target, self.valid)
        normalized, target = policy.normalize_returns(value[:, :-1]), policy.normalize_returns(target)
        valid = advantage[self.valid]
        return {
            "log_prob": policy.distribution(h[:, :-1], self.mask).log_prob(self.action),
            "value": normalized,
            "target": target,
            "advantage": (advantage - valid.mean()) / (valid.std() + 1e-8),
            "value_error": (normalized - target).square(),
        }

    def _states(self, policy: ActorCritic) -> Tensor:
        """The states after the frames, (N, T + 1, D): the next frame's `before`, and a new one after the last frame."""
        frame = self.obs[:, -1], self.last_action[:, -1], self.is_first[:, -1], self.before[:, -1]
        last = policy.advance(*frame)
        return torch.cat([self.before[:, self.earlier + 1 :], last.unsqueeze(1)], dim=1)

    @torch.no_grad()
    def segment_losses(self, policy: ActorCritic, discount: float, gae_lambda: float, steps: int) -> Tensor:
        """The critic's squared error (2,) over the first C steps and the next C, each as if no step followed it.

        Args:
            policy: the policy that acted.
            discount: of rewards.
            gae_lambda: lambda of the targets.
            steps: C, at most half of the experience.
        """
        steps, losses = min(steps, max(1, self.action.shape[1] // 2)), []
        value = policy.value(self._states(policy))
        for first in (0, steps):
            now, valid = slice(first, first + steps), self.valid[:, first : first + steps]
            values = value[:, first : first + steps + 1]
            error = gae(self.reward[:, now], values, ~self.terminated[:, now], valid, discount, gae_lambda).square()
            losses.append(masked_mean(error, valid, valid.sum()))
        return torch.stack(losses)

    def chunks(self, steps: int, assessed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut into chunks of C steps with the L frames before them; the last chunk of a lane is padded.

        Args:
            steps: C.
            assessed: the result of `assess`.

        Returns:
            With M = N ceil(T / C) chunks: frames (M, L + C, ...) as `obs`, `last_action`, `is_first`; `valid` of the
            same shape, False in the frames before; `carry` (M, D), the state before the first of them; steps
            (M, C, ...) as `action`, `mask` and what was assessed.
        """
        num_steps, earlier = self.action.shape[1], self.earlier
        padding = -num_steps % steps

        def windows(frames: Tensor) -> Tensor:
            padded = _padded(frames[:, : earlier + num_steps], padding)
            return padded.unfold(1, earlier + steps, steps).movedim(-1, 2).flatten(0, 1)

        def pieces(values: Tensor) -> Tensor:
            return _padded(values, padding).unflatten(1, (-1, steps)).flatten(0, 1)

        valid = F.pad(pieces(self.valid), (earlier, 0))
        by_frame = {name: windows(getattr(self, name)) for name in ("obs", "last_action", "is_first")}
        by_step = {"action": self.action, **assessed} | ({} if self.mask is None else {"mask": self.mask})
        carry = windows(self.before)[:, 0]
        return {**by_frame, "valid": valid, "carry": carry, **{name: pieces(v) for name, v in by_step.items()}}


def _padded(values: Tensor, steps: int) -> Tensor:
    """(N, T, ...) followed by `steps` steps of zeros."""
    return torch.cat([values, values.new_zeros(values.shape[0], steps, *values.shape[2:])], dim=1) if steps else values
