"""Open-loop error against the horizon, beside the baselines that anyone can compute."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.episodes import Episodes


class Rollout(Protocol):
    """What an open-loop rollout returns; see WorldModel.open_loop."""

    @property
    def obs(self) -> Tensor: ...  # (B, H, O)
    @property
    def z(self) -> Tensor: ...  # (B, H, Z)
    @property
    def h(self) -> Tensor: ...  # (B, H, D)


class Model(Protocol):
    """What is asked of a model: three functions in the units of the data, as WorldModel has them."""

    @property
    def device(self) -> torch.device: ...
    def encode(self, obs: Tensor, /) -> Tensor: ...
    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def open_loop(self, z: Tensor, h: Tensor, action: Tensor, /) -> Rollout: ...


@dataclass(frozen=True)
class Example:
    """One rollout, to be looked at. Frame 0 is the last that the model saw."""

    name: str
    truth: np.ndarray  # (H + 1, O)
    prediction: np.ndarray  # (H, O), of frames 1 .. H


@dataclass(frozen=True)
class HorizonCurves:
    """Errors H steps ahead, for H = 1 .. len(horizon), divided by the observations' variance: 1.0 predicts the mean."""

    horizon: np.ndarray  # (H,)
    nmse: np.ndarray  # (H,) the model, open loop
    copy_last: np.ndarray  # (H,) the last observation, kept
    mean: np.ndarray  # (H,) the mean observation
    hidden_norm: np.ndarray  # (H,) mean ||h||
    rollouts: np.ndarray  # (H,) how many are that long
    valid_time: float  # mean over rollouts of the first step with an error above the threshold
    threshold: float
    burn_in: int
    examples: list[Example]

    @property
    def crossing(self) -> int | None:
        """The first horizon at which the model's error passes the threshold; None: nowhere."""
        above = np.flatnonzero(~(self.nmse <= self.threshold))
        return int(self.horizon[above[0]]) if len(above) else None


@torch.no_grad()
def horizon_curves(
    model: Model,
    episodes: Episodes,
    steps: int,
    multiples: tuple[int, ...] = (1, 2, 5, 10, 50),
    burn_in: int | None = None,
    starts: int = 8,
    threshold: float = 0.5,
    num_examples: int = 3,
    reference: Episodes | None = None,
) -> HorizonCurves:
    """Roll a model out on episodes, without observations, from several frames of each.

    The model sees an episode's frames up to a start, then only the actions. Memory grows with the number of rollouts
    times the longest horizon, not with the episodes' lengths.

    Args:
        model: in evaluation mode.
        episodes: at least one.
        steps: T, the trained horizon; rollouts are at most the largest multiple of it long.
        multiples: of T; the starts are spread so that as many rollouts as possible reach all but the largest.
        burn_in: frames that are seen before the first start; None: T, or less where episodes are short.
        starts: rollouts of an episode.
        threshold: of the normalised error, for the valid prediction time.
        num_examples: rollouts kept for a picture.
        reference: whose mean and variance the errors are held against; None: the episodes'.
    """
    longest = int(episodes.num_frames.max()) - 1
    reference = episodes if reference is None else reference
    burn_in = min(steps, max(1, longest // 4)) if burn_in is None else burn_in
    burn_in = min(burn_in, longest - 1)
    plan = [
        (episode, start, min(int(frames) - 1 - start, steps * max(multiples)))
        for episode, frames in enumerate(episodes.num_frames)
        for start in _starts(int(frames) - 1, burn_in, steps, multiples, starts)
    ]
    z, h = _states_at(model, episodes, [(episode, start) for episode, start, _ in plan], steps)
    first_row = np.array([episodes.starts[episode] + start for episode, start, _ in plan])
    lengths = np.array([length for _, _, length in plan])
    pred, hidden_norm = _roll_out(model, episodes, z, h, first_row, lengths, steps)

    ahead = np.arange(1, lengths.max() + 1)
    valid = ahead <= lengths[:, None]
    truth = episodes.obs[np.where(valid, first_row[:, None] + ahead, first_row[:, None])]
    mean, variance = (getattr(reference.obs, name)(axis=0, dtype=np.float64) for name in ("mean", "var"))
    varies = variance > 1e-12 * (1 + np.square(mean))

    def error(prediction: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # a state that explodes is a result, not a fault
            squared = np.square(prediction.astype(np.float64) - truth)[..., varies] / variance[varies]
            return np.nan_to_num(squared.mean(axis=-1), nan=np.inf, posinf=np.inf)

    def curve(values: np.ndarray) -> np.ndarray:
        return np.where(valid, values, 0).sum(axis=0) / valid.sum(axis=0)

    model_error = error(pred)
    above = (model_error > threshold) & valid
    time = np.where(above.any(axis=1), above.argmax(axis=1) + 1, lengths)
    return HorizonCurves(
        horizon=ahead,
        nmse=curve(model_error),
        copy_last=curve(error(episodes.obs[first_row][:, None])),
        mean=curve(error(mean)),
        hidden_norm=curve(hidden_norm),
        rollouts=valid.sum(axis=0),
        valid_time=float(time.mean()),
        threshold=threshold,
        burn_in=burn_in,
        examples=_examples(episodes, plan, pred, num_examples),
    )


def _starts(length: int, burn_in: int, steps: int, multiples: tuple[int, ...], number: int) -> list[int]:
    """Frames of an episode with `length` transitions after which rollouts begin."""
    if length <= burn_in:
        return []
    fits = [multiple * steps for multiple in sorted(multiples) if burn_in + multiple * steps <= length]
    reach = fits[-2] if len(fits) > 1 else fits[0] if fits else 1
    return sorted(set(np.linspace(burn_in, length - reach, number).astype(int).tolist())) if fits else [burn_in]


def _states_at(model: Model, episodes: Episodes, wanted: list[tuple[int, int]], steps: int) -> tuple[Tensor, Tensor]:
    """For each (episode, frame): the frame's latent, and the state that saw all frames before it."""
    ids = sorted({episode for episode, _ in wanted})
    lane_of = {episode: lane for lane, episode in enumerate(ids)}
    frames, first_rows = episodes.num_frames[ids], episodes.starts[ids]
    lanes = torch.tensor([lane_of[episode] for episode, _ in wanted])
    starts = torch.tensor([start for _, start in wanted])
    z: Tensor | None = None
    h_at: Tensor | None = None
    carry: Tensor | None = None
    for begin in range(0, int(starts.max()) + 1, steps):
        position = np.arange(begin, begin + steps)
        rows = first_rows[:, None] + np.minimum(position, frames[:, None] - 1)
        obs, action = (_to(values[rows], model) for values in (episodes.obs, episodes.action))
        is_first = _to(np.broadcast_to(position == 0, rows.shape), model)
        before = carry
        _, h, carry = model.closed_loop(obs, action, is_first, carry)
        before = torch.zeros_like(carry) if before is None else before
        h_before = torch.cat([before.unsqueeze(1), h[:, :-1]], dim=1)
        latents = model.encode(obs)
        if z is None or h_at is None:
            z = latents.new_zeros(len(wanted), latents.shape[-1])
            h_at = h.new_zeros(len(wanted), h.shape[-1])
        here = torch.nonzero((starts >= begin) & (starts < begin + steps)).flatten()
        z[here], h_at[here] = latents[lanes[here], starts[here] - begin], h_before[lanes[here], starts[here] - begin]
    assert z is not None and h_at is not None
    return z, h_at


def _roll_out(
    model: Model, episodes: Episodes, z: Tensor, h: Tensor, first_row: np.ndarray, lengths: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted observations (R, H, O) and state norms (R, H); what lies behind a rollout's length means nothing."""
    preds, norms = [], []
    for begin in range(0, int(lengths.max()), steps):
        offset = np.minimum(np.arange(begin, min(begin + steps, lengths.max())), lengths[:, None] - 1)
        rollout = model.open_loop(z, h, _to(episodes.action[first_row[:, None] + offset], model))
        z, h = rollout.z[:, -1], rollout.h[:, -1]
        preds.append(rollout.obs.float().cpu().numpy())
        norms.append(rollout.h.norm(dim=-1).float().cpu().numpy())
    return np.concatenate(preds, axis=1), np.concatenate(norms, axis=1)


def _examples(episodes: Episodes, plan: list[tuple[int, int, int]], pred: np.ndarray, number: int) -> list[Example]:
    """The first rollout of the first few episodes that allow the longest ones."""
    firsts: dict[int, int] = {}
    for i, (episode, _, _) in enumerate(plan):
        firsts.setdefault(episode, i)
    chosen = sorted(firsts.values(), key=lambda i: -plan[i][2])[:number]
    examples = []
    for i in chosen:
        episode, start, length = plan[i]
        row = int(episodes.starts[episode]) + start
        name = f"{episodes.names[episode].split('/')[-1]}, from frame {start}"
        examples.append(Example(name, episodes.obs[row : row + length + 1], pred[i, :length]))
    return examples


def _to(values: np.ndarray, model: Model) -> Tensor:
    return torch.from_numpy(np.array(values)).to(model.device)  # a copy: a broadcast array is not writable
