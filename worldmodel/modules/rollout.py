"""Rollouts of a policy: what it saw, did and was in T steps of every environment, and the chunks it is trained on."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.losses import gae, masked_mean


@dataclass
class Rollout:
    """Segments of N lanes in the sense of batch.py, with the L frames before each of them (of the rollout before).

    Frames are (N, L + T + 1, ...), steps (N, T, ...). The frames before the first rollout of all are zeros.
    """

    obs: Tensor  # (..., O)
    last_action: Tensor  # (..., A) features of the action before the frame
    is_first: Tensor  # (...) bool
    before: Tensor  # (..., D) the state before the frame
    mask: Tensor | None  # (N, T, P) bool
    action: Tensor  # (N, T, K) as it was drawn
    reward: Tensor  # (N, T)
    terminated: Tensor  # (N, T) bool
    valid: Tensor  # (N, T) bool

    @property
    def earlier(self) -> int:
        """L."""
        return self.obs.shape[1] - self.action.shape[1] - 1

    @torch.no_grad()
    def refresh(self, policy: ActorCritic) -> None:
        """Make the stored states anew with the weights there are now, from the one before the first frame."""
        h = policy.states(self.obs, self.last_action, self.is_first, self.before[:, 0])
        self.before = torch.cat([self.before[:, :1], h[:, :-1]], dim=1)

    @torch.no_grad()
    def assess(self, policy: ActorCritic, discount: float, trace: float) -> dict[str, Tensor]:
        """What the policy that acted thinks of it, (N, T) each.

        log_prob, value and target (the latter two on the critic's scale, which takes in the targets first), advantage
        (of mean 0 and deviation 1 over the valid steps), and value_error: the squared error before any training on it.
        """
        h = self._states(policy)
        value = policy.value(h)
        advantage = gae(self.reward, value, ~self.terminated, self.valid, discount, trace)
        target = advantage + value[:, :-1]
        policy.update_returns(target, self.valid)
        normalized, target = policy.normalize_returns(value[:, :-1]), policy.normalize_returns(target)
        kept = advantage[self.valid]
        return {
            "log_prob": policy.distribution(h[:, :-1], self.mask).log_prob(self.action),
            "value": normalized,
            "target": target,
            "advantage": (advantage - kept.mean()) / (kept.std() + 1e-8),
            "value_error": (normalized - target).square(),
        }

    def _states(self, policy: ActorCritic) -> Tensor:
        """Behind each frame, (N, T + 1, D). Only the last is new: those before are in the next frame's `before`."""
        frame = self.obs[:, -1], self.last_action[:, -1], self.is_first[:, -1], self.before[:, -1]
        last = policy.advance(*frame)
        return torch.cat([self.before[:, self.earlier + 1 :], last.unsqueeze(1)], dim=1)

    @torch.no_grad()
    def segment_losses(self, policy: ActorCritic, discount: float, trace: float, steps: int) -> Tensor:
        """The critic's squared error over the first C steps, and over the next C, each as if it were a rollout: (2,).

        In the midst of a longer one: at its end the targets are the critic's own values, which are never far off.

        Args:
            policy: that acted.
            discount: of a reward that comes a step later.
            trace: lambda of the targets.
            steps: C; half of the rollout where it is more.
        """
        steps, losses = min(steps, max(1, self.action.shape[1] // 2)), []
        value = policy.value(self._states(policy))
        for first in (0, steps):
            now, valid = slice(first, first + steps), self.valid[:, first : first + steps]
            values = value[:, first : first + steps + 1]
            error = gae(self.reward[:, now], values, ~self.terminated[:, now], valid, discount, trace).square()
            losses.append(masked_mean(error, valid, valid.sum()))
        return torch.stack(losses)

    def chunks(self, steps: int, assessed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut into pieces of `steps` steps and the L frames before them; the last piece of a lane is padded.

        Args:
            steps: C.
            assessed: of `assess`.

        Returns:
            With M = N ceil(T / C) pieces: frames (M, L + C, ...) as `obs`, `last_action`, `is_first`; `valid` of the
            same shape, False in the frames before; `carry` (M, D), the state before the first of them; steps
            (M, C, ...) as `action`, `mask` and what was assessed.
        """
        num_steps, early = self.action.shape[1], self.earlier
        padding = -num_steps % steps

        def windows(frames: Tensor) -> Tensor:
            padded = _padded(frames[:, : early + num_steps], padding)
            return padded.unfold(1, early + steps, steps).movedim(-1, 2).flatten(0, 1)

        def pieces(values: Tensor) -> Tensor:
            return _padded(values, padding).unflatten(1, (-1, steps)).flatten(0, 1)

        valid = F.pad(pieces(self.valid), (early, 0))
        by_frame = {name: windows(getattr(self, name)) for name in ("obs", "last_action", "is_first")}
        by_step = {"action": self.action, **assessed} | ({} if self.mask is None else {"mask": self.mask})
        carry = windows(self.before)[:, 0]
        return {**by_frame, "valid": valid, "carry": carry, **{name: pieces(v) for name, v in by_step.items()}}


def _padded(values: Tensor, steps: int) -> Tensor:
    """(N, T, ...) with so many further steps of zeros."""
    return torch.cat([values, values.new_zeros(values.shape[0], steps, *values.shape[2:])], dim=1) if steps else values


def joined(before: Tensor, frames: Tensor, steps: int) -> Tensor:
    """The last `steps` of `before` (N, L + T + 1, ...), without its last frame, then `frames` (N, T + 1, ...)."""
    return torch.cat([before[:, before.shape[1] - 1 - steps : -1], frames], dim=1) if steps else frames


def frames_of(rollout: Rollout) -> dict[str, Any]:
    """The T frames of a rollout as InputHistory takes them."""
    steps = slice(rollout.earlier, -1)
    return {
        "obs": rollout.obs[:, steps],
        "action": rollout.last_action[:, steps],
        "is_first": rollout.is_first[:, steps],
    }
