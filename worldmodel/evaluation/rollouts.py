"""Open-loop rollouts of a model on episodes, measured as they go, so that predictions need not be kept."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.cells.recurrence import previous_states
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.statistics import observation_moments
from worldmodel.durable import whole_file
from worldmodel.losses import part_weights
from worldmodel.model import Model

BLOCK = 1 << 23  # entries of observations, or of states, at once: 32 MB
MOST_SHOWN = 1 << 22  # observation entries kept of an example: 340 images of 64x64x3


class Rollout(Protocol):
    """What an open-loop rollout returns; see WorldModel.open_loop."""

    @property
    def obs(self) -> Tensor: ...  # (B, H, O)
    @property
    def z(self) -> Tensor: ...  # (B, H, Z)
    @property
    def h(self) -> Tensor: ...  # (B, H, D)


class Forecast(NamedTuple):
    """A Rollout with nothing else in it."""

    obs: Tensor  # (B, H, O)
    z: Tensor  # (B, H, Z)
    h: Tensor  # (B, H, D)


class Forecaster(Protocol):
    """What an evaluation asks of a model: functions in the units of the data, as WorldModel has them."""

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
    """One rollout, for a picture. Frame 0 is the last that the model saw."""

    name: str
    truth: np.ndarray  # (H + 1, O)
    prediction: np.ndarray  # (H, O), of frames 1 .. H
    layout: Layout  # which entries are what
    start: "Start"
    band: np.ndarray | None = None  # (2, H, O) the ends of the 90% interval, of a model with a distribution


class Start(NamedTuple):
    """Where a rollout begins: it predicts frames frame + 1 .. frame + length of the episode."""

    episode: int
    frame: int
    length: int


class Ruler:
    """The normalised error: squared error over the variance of reference episodes, averaged over an observation.

    Entries that never vary are left out; where none varies, no error is defined. An image counts as much as the whole
    vector.
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
        """(..., O), (..., O) -> (...); infinite where the prediction is not finite, NaN where nothing varies."""
        if not self.weights.any():
            return np.full(np.broadcast_shapes(pred.shape, truth.shape)[:-1], np.nan)
        with np.errstate(over="ignore", invalid="ignore"):  # a state that explodes is a result, not a fault
            squared = np.square(pred - truth, dtype=np.float64) @ self.weights
        return np.nan_to_num(squared, nan=np.inf, posinf=np.inf)


class Chunk(NamedTuple):
    """Consecutive steps of some rollouts; what lies after a rollout's end repeats its last frame."""

    rollouts: slice  # which of the starts, R of them
    ahead: np.ndarray  # (C,) steps after the start, from 0
    truth: np.ndarray  # (R, C, O)
    prediction: np.ndarray  # (R, C, O)
    h: Tensor  # (R, C, D)
    apart: np.ndarray | None  # (R, C, O) the variance of the members' predictions, where there are several


def open_loop_chunks(model: Forecaster, episodes: Episodes, starts: list[Start], steps: int) -> Iterator[Chunk]:
    """Show the model each episode up to a start, then let it predict from actions alone, `steps` steps at a time."""
    z, h = states_at(model, episodes, starts, steps)
    lengths = np.array([start.length for start in starts])
    first_rows = np.array([episodes.starts[start.episode] + start.frame for start in starts])
    group = max(1, BLOCK // (steps * max(episodes.layout.obs_dim, h.shape[-1])))
    for some in (slice(first, first + group) for first in range(0, len(starts), group)):
        z_now, h_now = z[some], h[some]
        for begin in range(0, int(lengths[some].max()), steps):
            ahead = np.arange(begin, min(begin + steps, lengths[some].max()))
            rows = first_rows[some, None] + np.minimum(ahead, lengths[some, None] - 1)
            rollout = model.open_loop(z_now, h_now, to_model(episodes.action(rows), model))
            z_now, h_now = rollout.z[:, -1], rollout.h[:, -1]
            each = model.decode_each(rollout.z).var(dim=-2) if isinstance(model, Model) and model.members > 1 else None
            apart = None if each is None else each.float().cpu().numpy()
            yield Chunk(some, ahead, episodes.obs(rows + 1), rollout.obs.float().cpu().numpy(), rollout.h, apart)


class Kept:
    """Predictions of a few rollouts, collected for pictures."""

    def __init__(self, kept: list[int]) -> None:
        self.parts: dict[int, list[np.ndarray]] = {i: [] for i in kept}

    def add(self, chunk: Chunk) -> None:
        """Take what belongs to these rollouts, up to MOST_SHOWN entries of each."""
        for i, parts in self.parts.items():
            if chunk.rollouts.start <= i < chunk.rollouts.stop and sum(part.size for part in parts) < MOST_SHOWN:
                parts.append(chunk.prediction[i - chunk.rollouts.start].copy())

    def examples(self, episodes: Episodes, starts: list[Start]) -> list[Example]:
        """The rollouts beside the truth."""
        examples = []
        for i, parts in self.parts.items():
            episode, frame, length = starts[i]
            prediction = np.concatenate(parts)[:length]
            name = f"{episodes.names[episode].split('/')[-1]}, from frame {frame}"
            truth = episodes.obs(episodes.starts[episode] + frame + np.arange(len(prediction) + 1))
            examples.append(Example(name, truth, prediction, episodes.layout, starts[i]))
        return examples


def roll_out(
    model: Forecaster, episodes: Episodes, starts: list[Start], steps: int, ruler: Ruler, kept: list[int]
) -> tuple[np.ndarray, list[Example]]:
    """Measure open-loop rollouts from the starts, computed `steps` steps at a time.

    Returns (5, R, H), of R rollouts H steps ahead: the normalised errors of the model, of the last observation and of
    the mean, the norm of the state, and the normalised variance among members, NaN without any; meaningless after the
    end of a rollout. And the rollouts `kept` as examples.
    """
    first_rows = np.array([episodes.starts[start.episode] + start.frame for start in starts])
    measured = np.full((5, len(starts), max(start.length for start in starts)), np.nan)
    shown = Kept(kept)
    for chunk in open_loop_chunks(model, episodes, starts, steps):
        last = episodes.obs(first_rows[chunk.rollouts])[:, None]
        errors = [ruler.error(values, chunk.truth) for values in (chunk.prediction, last, ruler.mean)]
        apart = np.full_like(errors[0], np.nan)
        if chunk.apart is not None:
            apart = ruler.error(np.sqrt(chunk.apart), np.zeros(chunk.apart.shape[-1]))
        measured[:, chunk.rollouts, chunk.ahead] = *errors, chunk.h.norm(dim=-1).float().cpu().numpy(), apart
        shown.add(chunk)
    return measured, shown.examples(episodes, starts)


def states_at(model: Forecaster, episodes: Episodes, wanted: list[Start], steps: int) -> tuple[Tensor, Tensor]:
    """For each start: the latent of its frame, and the state after all frames before it."""
    ids = sorted({start.episode for start in wanted})
    group = max(1, BLOCK // (steps * episodes.layout.obs_dim))
    states: dict[int, tuple[Tensor, Tensor]] = {}
    for first in range(0, len(ids), group):
        chosen = ids[first : first + group]
        numbers = [i for i, start in enumerate(wanted) if start.episode in chosen]
        z, h = _states_of(model, episodes, chosen, [wanted[i] for i in numbers], steps)
        states |= {i: (z[n], h[n]) for n, i in enumerate(numbers)}
    z, h = zip(*(states[i] for i in range(len(wanted))), strict=True)
    return torch.stack(z), torch.stack(h)


def _states_of(
    model: Forecaster, episodes: Episodes, ids: list[int], wanted: list[Start], steps: int
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


def append_rows(path: Path, rows: Iterable[tuple[int, str, float]]) -> None:
    """Append rows of horizon, metric, value to a rollout.csv, or write it."""
    before = path.read_text() if path.exists() else "horizon,metric,value\r\n"
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        file.write(before)
        csv.writer(file).writerows(rows)


def to_model(values: np.ndarray, model: Forecaster) -> Tensor:
    """Copy to the model's device."""
    return torch.from_numpy(np.array(values)).to(model.device)  # a broadcast array is not writable
