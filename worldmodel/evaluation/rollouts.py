"""Open-loop rollouts of a model on episodes, measured as they go, so that no prediction has to be kept."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.cells.recurrence import previous_states
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.statistics import observation_moments
from worldmodel.losses import part_weights

BLOCK = 1 << 23  # observation entries that are predicted at once: 32 MB
MOST_SHOWN = 1 << 22  # of an example, which is 340 images of 64x64x3


class Rollout(Protocol):
    """What an open-loop rollout returns; see WorldModel.open_loop."""

    @property
    def obs(self) -> Tensor: ...  # (B, H, O)
    @property
    def z(self) -> Tensor: ...  # (B, H, Z)
    @property
    def h(self) -> Tensor: ...  # (B, H, D)


class Predicted(NamedTuple):
    """A Rollout of a model that has nothing else to tell."""

    obs: Tensor  # (B, H, O)
    z: Tensor  # (B, H, Z)
    h: Tensor  # (B, H, D)


class Model(Protocol):
    """What is asked of a model: functions in the units of the data, as WorldModel has them."""

    @property
    def device(self) -> torch.device: ...
    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # predicted next observations (B, T, O), states (B, T, D), carry (B, D)
    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # latents (B, T, Z), states (B, T, D), carry (B, D)
    def open_loop(self, z: Tensor, h: Tensor, action: Tensor, /) -> Rollout: ...


@dataclass(frozen=True)
class Example:
    """One rollout, to be looked at. Frame 0 is the last that the model saw."""

    name: str
    truth: np.ndarray  # (H + 1, O)
    prediction: np.ndarray  # (H, O), of frames 1 .. H
    layout: Layout  # which entries are what


class Start(NamedTuple):
    """Where a rollout begins: it predicts frames start + 1 .. start + length of the episode."""

    episode: int
    frame: int
    length: int


class Ruler:
    """The normalised error: squared, divided by the variance of reference episodes; the mean over an observation.

    What never varies is left out. An image counts as much as the whole vector.
    """

    def __init__(self, reference: Episodes) -> None:
        self.mean, var = observation_moments(reference)
        layout = reference.layout
        weights = part_weights(layout.obs_dim, list(layout.images.values())).double().numpy()
        weights[~(var > 1e-12 * (1 + np.square(self.mean)))] = 0
        if layout.vector_dim and (kept := weights[: layout.vector_dim].sum()):
            weights[: layout.vector_dim] *= 1 / ((1 + len(layout.images)) * kept)  # the vector's share of all parts
        weights /= max(weights.sum(), 1e-300)
        self.weights = weights / np.where(weights > 0, var, 1)

    def error(self, pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """(..., O), (..., O) -> (...): infinite where the prediction is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):  # a state that explodes is a result, not a fault
            squared = np.square(pred - truth, dtype=np.float64) @ self.weights
        return np.nan_to_num(squared, nan=np.inf, posinf=np.inf)


@dataclass
class Measured:
    """Of R rollouts, H steps ahead; what lies behind a rollout's length means nothing."""

    nmse: np.ndarray  # (R, H)
    copy_last: np.ndarray  # (R, H)
    mean: np.ndarray  # (R, H)
    hidden_norm: np.ndarray  # (R, H)
    examples: list[Example]


def roll_out(
    model: Model, episodes: Episodes, plan: list[Start], steps: int, ruler: Ruler, kept: list[int]
) -> Measured:
    """Let the model see each episode up to the starts, and go on from actions alone.

    Args:
        model: in evaluation mode.
        episodes: that the plan speaks of.
        plan: the rollouts.
        steps: that are computed at once.
        ruler: for the errors.
        kept: rollouts whose predictions are kept as examples, in this order.
    """
    z, h = _states_at(model, episodes, plan, steps)
    horizon = max(start.length for start in plan)
    measured = Measured(*(np.full((len(plan), horizon), np.nan) for _ in range(4)), examples=[])
    predictions: dict[int, list[np.ndarray]] = {i: [] for i in kept}
    group = max(1, BLOCK // (steps * episodes.layout.obs_dim))
    for first in range(0, len(plan), group):
        some = slice(first, first + group)
        _roll_group(model, episodes, plan, z[some], h[some], some, steps, ruler, measured, predictions)
    for i in kept:
        episode, frame, length = plan[i]
        pred = np.concatenate(predictions[i])[:length]
        rows = int(episodes.starts[episode]) + frame + np.arange(len(pred) + 1)
        name = f"{episodes.names[episode].split('/')[-1]}, from frame {frame}"
        measured.examples.append(Example(name, episodes.obs(rows), pred, episodes.layout))
    return measured


def _roll_group(
    model: Model,
    episodes: Episodes,
    plan: list[Start],
    z: Tensor,
    h: Tensor,
    some: slice,
    steps: int,
    ruler: Ruler,
    measured: Measured,
    predictions: dict[int, list[np.ndarray]],
) -> None:
    """The rollouts `some` of the plan, `steps` steps at a time."""
    first_row = np.array([episodes.starts[episode] + frame for episode, frame, _ in plan[some]])
    lengths = np.array([length for _, _, length in plan[some]])
    last = episodes.obs(first_row)[:, None]
    for begin in range(0, int(lengths.max()), steps):
        ahead = np.arange(begin, min(begin + steps, lengths.max()))
        rows = first_row[:, None] + np.minimum(ahead, lengths[:, None] - 1)
        rollout = model.open_loop(z, h, to_model(episodes.action(rows), model))
        z, h = rollout.z[:, -1], rollout.h[:, -1]
        pred, truth = rollout.obs.float().cpu().numpy(), episodes.obs(rows + 1)
        here = (some, slice(begin, begin + len(ahead)))
        measured.nmse[here] = ruler.error(pred, truth)
        measured.copy_last[here] = ruler.error(last, truth)
        measured.mean[here] = ruler.error(ruler.mean, truth)
        measured.hidden_norm[here] = rollout.h.norm(dim=-1).float().cpu().numpy()
        for i, kept in predictions.items():
            if some.start <= i < some.stop and sum(part.size for part in kept) < MOST_SHOWN:
                kept.append(pred[i - some.start].copy())


def _states_at(model: Model, episodes: Episodes, wanted: list[Start], steps: int) -> tuple[Tensor, Tensor]:
    """For each start: its frame's latent, and the state that saw all frames before it."""
    ids = sorted({start.episode for start in wanted})
    group = max(1, BLOCK // (steps * episodes.layout.obs_dim))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for first in range(0, len(ids), group):
        chosen = ids[first : first + group]
        numbers = [i for i, start in enumerate(wanted) if start.episode in chosen]
        latents, states = _states_of(model, episodes, chosen, [wanted[i] for i in numbers], steps)
        found |= {i: (latents[n], states[n]) for n, i in enumerate(numbers)}
    z, h = zip(*(found[i] for i in range(len(wanted))), strict=True)
    return torch.stack(z), torch.stack(h)


def _states_of(
    model: Model, episodes: Episodes, ids: list[int], wanted: list[Start], steps: int
) -> tuple[Tensor, Tensor]:
    lane_of = {episode: lane for lane, episode in enumerate(ids)}
    frames, first_rows = episodes.num_frames[ids], episodes.starts[ids]
    lanes = torch.tensor([lane_of[start.episode] for start in wanted])
    starts = torch.tensor([start.frame for start in wanted])
    z: Tensor | None = None
    h_at: Tensor | None = None
    carry: Tensor | None = None
    for begin in range(0, int(starts.max()) + 1, steps):
        position = np.arange(begin, begin + steps)
        rows = first_rows[:, None] + np.minimum(position, frames[:, None] - 1)
        obs, action = to_model(episodes.obs(rows), model), to_model(episodes.action(rows), model)
        is_first = to_model(np.broadcast_to(position == 0, rows.shape), model)
        before = carry
        latents, h, carry = model.observe(obs, action, is_first, carry)
        h_before = previous_states(h, is_first, before)
        if z is None or h_at is None:
            z = latents.new_zeros(len(wanted), latents.shape[-1])
            h_at = h.new_zeros(len(wanted), h.shape[-1])
        here = torch.nonzero((starts >= begin) & (starts < begin + steps)).flatten()
        z[here], h_at[here] = latents[lanes[here], starts[here] - begin], h_before[lanes[here], starts[here] - begin]
    assert z is not None and h_at is not None
    return z, h_at


def to_model(values: np.ndarray, model: Model) -> Tensor:
    """A copy on the model's device."""
    return torch.from_numpy(np.array(values)).to(model.device)  # a broadcast array is not writable
