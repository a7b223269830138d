"""The linear base of a model's predictions: an autoregression with exogenous inputs (ARX), which a rule corrects.

    b_t      = c + sum over i < p of (A_i o_{t-i} + B_i a_{t-i})
    o^_{t+1} = b_t + s d_t

by least squares on the training split; s is the deviation of o_{t+1} - b_t, and d_t the model's correction. The
innovation e_t = (o_t - b_{t-1}) / s says how far the base was off just now. In the first p - 1 frames of an episode a
regression on the frames that there are takes the base's place, with a deviation of its own.

In open loop the corrected prediction o^ takes the place of the observation (feedback). Without feedback the base is
rolled out alone, and the correction is added to what it predicts so far ahead, in units of its own error there:

    o^_{t+k} = b_{t+k} + drift_k d_{t+k-1}

Further ahead than it can know, an autoregression wanders off, or explodes. In open loop the observation that is fed
back is kept within the range of the data and one range beyond; and what is shown of a prediction is shrunk towards the
mean, entry by entry, by the factor that was best so many steps ahead on the training split (evaluation/shrinkage.py).

Everything here is in a model's units: normalised observations o (..., O) and actions a (..., A). The memory of a frame
(..., M) is all that the base knows before the action is chosen: o_t, e_t, the frames before, newest first, the frame's
number in its episode from 1, and the steps since the last observation, 0 in closed loop.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

CLIP = 5.0  # of an innovation that a network sees
FURTHEST = 1e6  # of an observation from its mean, in deviations, until the data's range is known
KNOTS, PER_OCTAVE = 64, 4  # of the shrinkage: for 1, 1.2, 1.4, 1.7, 2, ... steps ahead


class Memory(NamedTuple):
    """The parts of a frame's memory."""

    obs: Tensor  # (..., O)
    innovation: Tensor  # (..., O); of a prediction, its correction
    past: Tensor  # (..., P (O + A)), zeros before the episode's start
    age: Tensor  # (..., 1)
    ahead: Tensor  # (..., 1)


class Line(NamedTuple):
    """What the base predicts of the next frame."""

    pred: Tensor  # (..., O)
    scale: Tensor  # (..., O) its errors' deviation


class LinearBase(nn.Module):
    """The base, whose coefficients are buffers. A new one predicts the mean, with the observations' deviation.

    Args:
        obs_dim: O.
        action_dim: A.
        lags: p.
        feedback: whether corrected predictions are fed back in open loop.
    """

    weights: Tensor
    constants: Tensor
    scales: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    drifts: Tensor
    shrinkage: Tensor

    def __init__(self, obs_dim: int, action_dim: int, lags: int, feedback: bool = True) -> None:
        super().__init__()
        self.feedback = feedback
        self.obs_dim, self.frame_dim = obs_dim, obs_dim + action_dim
        self.features_dim = 3 * obs_dim
        self.register_buffer("spread", torch.ones(obs_dim))  # of o_t - o_{t-1}
        self.register_buffer("low", torch.full((obs_dim,), -FURTHEST))
        self.register_buffer("high", torch.full((obs_dim,), FURTHEST))
        self.register_buffer("drifts", torch.ones(KNOTS, obs_dim))  # of the base's error, so many steps ahead
        self.register_buffer("shrinkage", torch.ones(KNOTS, obs_dim))
        self._size(lags)
        self.register_load_state_dict_pre_hook(_as_loaded)

    def _size(self, lags: int) -> None:
        like, obs_dim = self.spread, self.obs_dim
        self.lags = lags
        self.past_dim = max(lags - 1, 1) * self.frame_dim  # of P frames
        self.memory_dim, self.carry_dim = 2 * obs_dim + self.past_dim + 2, self.past_dim + obs_dim + 1
        # of the regressions on 1 .. p frames, newest frame first, then zeros
        self.register_buffer("weights", like.new_zeros(lags, lags * self.frame_dim, obs_dim))
        self.register_buffer("constants", like.new_zeros(lags, obs_dim))
        self.register_buffer("scales", like.new_ones(lags, obs_dim))

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None
    ) -> tuple[Tensor, Line, Tensor]:
        """Follow a segment: obs (B, T, O), action (B, T, A), is_first (B, T) bool, carry (B, C); None: it starts here.

        Returns the memories (B, T, M), the predictions, and the carry after the segment, detached.
        """
        carry = obs.new_zeros(len(obs), self.carry_dim) if carry is None else carry
        past, last_pred, last_age = carry.split([self.past_dim, self.obs_dim, 1], dim=-1)
        frames = torch.cat([past.unflatten(-1, (-1, self.frame_dim)).flip(1), torch.cat([obs, action], -1)], dim=1)
        windows = frames.unfold(1, self.past_dim // self.frame_dim + 1, 1).flip(-1)  # (B, T, F, P + 1), newest first
        count = torch.arange(1, obs.shape[1] + 1, device=obs.device, dtype=obs.dtype)
        begun = count * is_first
        first = (
            begun.cummax(dim=1).values if len(count) > 1 else begun
        )  # where the episode began; 0: before the segment
        age = (count + torch.where(first > 0, 1 - first, last_age)).unsqueeze(-1)
        of_episode = torch.arange(windows.shape[-1], device=obs.device) < age.unsqueeze(-1)
        windows = rearrange(torch.where(of_episode, windows, 0.0), "b t f p -> b t (p f)")
        line = self.line(windows, age, 1 if _may_be_young(age, self.lags) else self.lags)
        before = torch.cat([last_pred.unsqueeze(1), line.pred[:, :-1]], dim=1)
        innovation = torch.where(age > 1, (obs - before) / self._scale(age - 1), 0.0).clamp(-CLIP, CLIP)
        memory = Memory(obs, innovation, windows[..., self.frame_dim :], age, torch.zeros_like(age))
        after = torch.cat([windows[:, -1, : self.past_dim], line.pred[:, -1], age[:, -1]], dim=-1)
        return torch.cat(memory, dim=-1), line, after.detach()

    def begun(self, obs: Tensor) -> Tensor:
        """The memories (..., M) of frames (..., O) that begin an episode."""
        zeros = obs.new_zeros(*obs.shape[:-1], self.memory_dim - self.obs_dim)
        zeros[..., -2] = 1  # its age
        return torch.cat([obs, zeros], dim=-1)

    def unpacked(self, memory: Tensor) -> Memory:
        """The parts of memories (..., M)."""
        return Memory(*memory.split([self.obs_dim, self.obs_dim, self.past_dim, 1, 1], dim=-1))

    def features(self, memory: Tensor) -> Tensor:
        """What an encoder sees of memories (..., M): o_t, e_t, and o_t - o_{t-1} in its own deviation, (..., 3 O)."""
        obs, innovation, past, age, _ = self.unpacked(memory)
        moved = (obs - past[..., : self.obs_dim]) / self.spread
        return torch.cat([obs, innovation, torch.where(age > 1, moved, 0.0)], dim=-1)

    def carried(self, memory: Tensor, action: Tensor) -> Tensor:
        """The carry (B, C) after a frame with memory (B, M) and the action there (B, A), as `observe` gives it."""
        obs, _, past, age, _ = self.unpacked(memory)
        window = torch.cat([obs, action, past], dim=-1)
        return torch.cat([window[..., : self.past_dim], self.line(window, age).pred, age], dim=-1)

    def corrected(self, memory: Tensor) -> Tensor:
        """The observations (..., O) of memories (..., M), seen or predicted."""
        parts = self.unpacked(memory)
        if self.feedback:
            return parts.obs
        return torch.where(parts.ahead > 0, parts.obs + self.drift(memory) * parts.innovation, parts.obs)

    def shown(self, memory: Tensor) -> Tensor:
        """The observations (..., O) of memories (..., M); those that were predicted shrunk towards the mean."""
        obs, ahead = self.corrected(memory), self.unpacked(memory).ahead
        return torch.where(ahead > 0, self._knots(self.shrinkage, ahead) * obs, obs)

    def drift(self, memory: Tensor) -> Tensor:
        """The deviation of the base's own error (..., O) as far ahead as predicted memories (..., M).

        It was measured from frames with a history; from the first ones of an episode it grows by the factor by which
        one step's error does, up to that of the mean.
        """
        parts = self.unpacked(memory)
        return self.drift_from(parts.age - parts.ahead, parts.ahead)

    def drift_from(self, age: Tensor, ahead: Tensor) -> Tensor:
        """The same, so many steps (..., 1) ahead of a frame of an age (..., 1)."""
        shorter = (self._scale(age) / self.scales[-1]).clamp(min=1.0)
        return (self._knots(self.drifts, ahead) * shorter).clamp(max=1.0)

    @staticmethod
    def _knots(table: Tensor, ahead: Tensor) -> Tensor:
        """A table (KNOTS, O) so many steps (..., 1) ahead, from 1, (..., O)."""
        place = (PER_OCTAVE * ahead.clamp(min=1).log2()).clamp(max=KNOTS - 1.001)
        knot = place.long().squeeze(-1)
        return torch.lerp(table[knot], table[knot + 1], place - place.floor())

    def line(self, windows: Tensor, age: Tensor, least: int = 1) -> Line:
        """From windows (..., at least p (O + A)), newest frame first, with ages (..., 1), none below `least`."""
        windows = windows[..., : self.lags * self.frame_dim]
        with torch.autocast(windows.device.type, enabled=False):  # an innovation may be a millionth of an observation
            if least >= self.lags:
                pred = windows @ self.weights[-1] + self.constants[-1]
                return Line(pred, self.scales[-1].expand_as(pred))
            every = torch.einsum("...f,pfo->...po", windows, self.weights) + self.constants
        index = self._index(age).unsqueeze(-1).expand(*age.shape[:-1], 1, self.obs_dim)
        return Line(every.gather(-2, index).squeeze(-2), self._scale(age))

    def _scale(self, age: Tensor) -> Tensor:
        return self.scales[self._index(age).squeeze(-1)]

    def _index(self, age: Tensor) -> Tensor:
        """Of the regression for an age (..., 1); a lane that has diverged has one too."""
        return (age > torch.arange(1, self.lags, device=age.device)).sum(dim=-1, keepdim=True)


def _may_be_young(age: Tensor, lags: int) -> bool:
    """Whether an age may be below `lags`: on a GPU the question costs more, and an exported graph can ask none."""
    return age.device.type != "cpu" or torch.compiler.is_exporting() or bool((age < lags).any())


def _as_loaded(base: LinearBase, tensors: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Before coefficients are loaded, make room for as many lags as they have."""
    weights = tensors.get(f"{prefix}weights")
    if weights is not None and weights.ndim == 3 and len(weights) != base.lags:
        base._size(len(weights))


class Rollout:
    """Open loop on a base: its corrected predictions take the place of what is not seen.

    Args:
        base: the base.
        memory: of the last frame that was seen (B, M).
    """

    def __init__(self, base: LinearBase, memory: Tensor) -> None:
        self.base, self.start = base, base.unpacked(memory)
        self.obs, self.actions = [self.start.obs], list[Tensor]()
        self.innovations: list[Tensor] = []
        self._older = [self.start.past][: base.lags - 1]  # read beside the present frame, newest first
        # steps in which a lane may need a regression on fewer frames
        self._young = base.lags - 1 if _may_be_young(self.start.age, base.lags) else 0
        self._mixed = torch.is_autocast_enabled(memory.device.type)
        self._weight, self._constant, self._scale = base.weights[-1], base.constants[-1], base.scales[-1]
        self._low, self._high, self._spread = base.low, base.high, base.spread

    def step(self, action: Tensor, correction: Tensor) -> Tensor:
        """After an action (B, A) and its step's correction (B, O): what the encoder sees of the next frame (B, 3 O)."""
        base, steps, last = self.base, len(self.innovations), self.obs[-1]
        frames = [last, action, *self._older]
        window = torch.cat(frames, dim=-1)[..., : len(self._weight)]
        if self._mixed or steps < self._young:
            pred, scale = base.line(window, self.start.age + steps, least=steps + 1)
        else:  # the same, with less around it
            pred, scale = torch.addmm(self._constant, window, self._weight), self._scale
        self.line = Line(pred, scale)
        obs = torch.addcmul(pred, scale, correction.to(pred.dtype)).clamp(self._low, self._high)
        self.obs.append(obs)
        self.actions.append(action)
        self.innovations.append(correction.clamp(-CLIP, CLIP))
        self._older = frames[: 2 * (base.lags - 1)]
        return torch.cat([obs, self.innovations[-1], (obs - last) / self._spread], dim=-1)

    def alone(self, action: Tensor) -> Tensor:
        """Under actions (B, H, A) without any correction: what the encoder sees of the predicted frames (B, H, 3 O)."""
        zero = torch.zeros_like(self.start.obs)
        with torch.no_grad():
            return torch.stack([self.step(a_t, zero) for a_t in action.unbind(dim=1)], dim=1)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """The observations that were predicted, and the deviation of the base's own error there, (B, H, O) each."""
        age, ahead = self.start.age.unsqueeze(1), self.start.ahead.unsqueeze(1)
        return torch.stack(self.obs[1:], dim=1), self.base.drift_from(age - ahead, ahead + self._ahead())

    def memories(self) -> Tensor:
        """Of the frames that were predicted (B, H, M)."""
        obs, innovations, actions = (torch.stack(x, dim=1) for x in (self.obs, self.innovations, self.actions))
        before = self.start.past.unflatten(-1, (-1, self.base.frame_dim)).flip(1)
        frames = torch.cat([before, torch.cat([obs[:, :-1], actions], dim=-1)], dim=1)
        past = frames.unfold(1, before.shape[1], 1)[:, 1:].flip(-1)
        counts = [count.unsqueeze(1) + self._ahead() for count in (self.start.age, self.start.ahead)]
        return torch.cat([obs[:, 1:], innovations, rearrange(past, "b h f p -> b h (p f)"), *counts], dim=-1)

    def _ahead(self) -> Tensor:
        return torch.arange(1, len(self.obs), device=self.start.age.device).unsqueeze(-1)  # (H, 1)
