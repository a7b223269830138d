"""What a trained model has to beat, with the interface of one (rollouts.Forecaster), so that one code measures all.

The observation is its own latent. Baselines live on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import observation_moments, step_statistics
from worldmodel.errors import UserError
from worldmodel.evaluation.rollouts import Forecast
from worldmodel.regression import Units, solve, squared_errors

WIDEST = 1024  # inputs of a regression: where frames are wide, fewer lags are tried
RIDGE = 1e-11  # times the number of rows, of inputs with unit variance: just above the rounding of inner products
BLOCK = 1 << 22  # input entries at once: 32 MB
HELD_OUT = 5  # every fifth episode is held out


class CopyLast:
    """Predicts that the last observation stays. Its state has no entries."""

    device = torch.device("cpu")

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return obs, obs.new_zeros(*obs.shape[:2], 0), obs.new_zeros(len(obs), 0)

    observe = closed_loop

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop."""
        obs = z.unsqueeze(1).expand(-1, action.shape[1], -1)
        return Forecast(obs, obs, obs.new_zeros(*obs.shape[:2], 0))


class Mean(CopyLast):
    """Predicts the mean observation of some episodes, whatever comes. Its state has no entries."""

    def __init__(self, reference: Episodes) -> None:
        self.mean = torch.from_numpy(observation_moments(reference).mean)

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return super().closed_loop(self.mean.expand(obs.shape), action, is_first, h)

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop."""
        return super().open_loop(self.mean.expand(z.shape), h, action)


class AutoRegression:
    """The next observation as a linear function of the last p observations and actions (ARX), by least squares.

    At an episode's start, after c < p frames, a separate regression on c frames predicts: zeros in place of missing
    frames would be read as frames. In open loop it sees its own predictions; an unstable one explodes, and that is a
    result. It predicts absolute values: since the last observation is among the inputs, least squares of the
    differences gives the same function.

    The state holds the last frames, at most p - 1 of which are read, oldest first, each as (age, observation, action)
    in unit variance. The age counts an episode's frames from 1: it tells which of them are of this episode.
    """

    device = torch.device("cpu")

    def __init__(self, nested: "NestedRegressions", lags: int) -> None:
        """Takes the first `lags` of nested regressions."""
        self.lags = lags
        self._past = max(lags - 1, 1)  # frames in the state
        self._obs, self._action = nested.obs.tensors(), nested.action.tensors()
        chosen = [torch.from_numpy(weights) for weights in nested.weights[:lags]]
        frame = (chosen[-1].shape[0] - 1) // lags
        self._width = 1 + frame
        self._constants = [weights[0] for weights in chosen]
        # oldest first, and the age with weight zero: a window of frames is then one vector, and a view
        windows = [weights[1:].reshape(-1, frame, weights.shape[1]).flip(0) for weights in chosen]
        self._weights = [torch.nn.functional.pad(window, (0, 0, 1, 0)).flatten(0, 1) for window in windows]

    @classmethod
    def fit(cls, train: Episodes, lags: int | None, max_lags: int) -> "AutoRegression":
        """Fit to the transitions of some episodes, in memory that does not grow with them.

        Args:
            train: at least one episode, of vectors.
            lags: p; None: of 1, 2, 4, 8, .., max_lags the one with the least one-step error on every fifth episode
                after a fit to the others; then all are fitted.
            max_lags: the trained horizon. Never more are tried than make 1024 inputs, or than the longest episode has.

        Raises:
            UserError: if a number of lags is below 1, or the episodes hold images: pixels are too many.
        """
        layout = train.layout
        if layout.images:
            raise UserError(f"a linear autoregression takes vectors, not images ({', '.join(layout.images)})")
        if (fewest := min(max_lags, max_lags if lags is None else lags)) < 1:
            raise UserError(f"a linear autoregression has at least 1 lag, not {fewest}")
        affordable = max(1, min(max_lags, WIDEST // (layout.vector_dim + layout.action_dim)))
        most = min(affordable if lags is None else lags, int(train.num_frames.max()) - 1)
        nested = nested_regressions(train, most)
        powers = [2**i for i in range(most.bit_length()) if 2**i < most]
        return cls(nested, most if lags else min([*powers, most], key=lambda p: nested.held_out[p - 1]))

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop: the states (B, T, D) are views of one sequence of frames."""
        h = torch.zeros(len(obs), self._past * self._width, dtype=torch.float64) if h is None else h
        frames = self._frames(h, action, is_first)
        frames[:, self._past :, 1 : 1 + obs.shape[2]] = self._obs.scaled(obs)
        pred = torch.stack([self._predict(frames, t) for t in range(obs.shape[1])], dim=1)
        states = self._states(frames)
        return self._obs.unscaled(pred), states, states[:, -1]

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.observe."""
        _, states, carry = self.closed_loop(obs, action, is_first, h)
        return obs.double(), states, carry

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop: from an observation z (B, O) and the state before it h, under actions (B, H, A)."""
        frames = self._frames(h, action, torch.zeros(action.shape[:2], dtype=torch.bool))
        latest, preds = self._obs.scaled(z), []
        for t in range(action.shape[1]):
            frames[:, self._past + t, 1 : 1 + z.shape[1]] = latest
            latest = self._predict(frames, t)
            preds.append(latest)
        obs = self._obs.unscaled(torch.stack(preds, dim=1))
        return Forecast(obs, obs, self._states(frames))

    def _frames(self, h: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """(B, past + T, width): the state's frames, then those to come, without their observations."""
        past = h.view(len(h), self._past, self._width)
        count = torch.arange(1, action.shape[1] + 1)
        first = (count * is_first).cummax(dim=1).values  # where the episode began; 0: before
        frames = past.new_zeros(len(h), self._past + action.shape[1], self._width)
        frames[:, : self._past] = past
        frames[:, self._past :, 0] = count + torch.where(first > 0, 1 - first, past[:, -1:, 0])
        frames[:, self._past :, -action.shape[2] :] = self._action.scaled(action)
        return frames

    def _predict(self, frames: Tensor, t: int) -> Tensor:
        """(B, O), in unit variance, after the t-th frame to come."""
        newest = self._past + t
        window = frames[:, newest + 1 - self.lags : newest + 1].flatten(1)
        pred = window @ self._weights[-1] + self._constants[-1]
        age = frames[:, newest, 0]
        if bool((age < self.lags).any()):
            for lags in range(1, self.lags):
                rows = age == lags
                pred[rows] = window[rows, -lags * self._width :] @ self._weights[lags - 1] + self._constants[lags - 1]
        return pred

    def _states(self, frames: Tensor) -> Tensor:
        return frames[:, 1:].flatten(1).unfold(1, self._past * self._width, self._width)


@dataclass(frozen=True)
class NestedRegressions:
    """Regressions of the next observation on the last 1 .. p frames, each fitted to all windows of that many frames."""

    obs: Units[np.ndarray]
    action: Units[np.ndarray]
    weights: list[np.ndarray]  # on c frames at [c - 1]: (1 + c (O + A), O), the constant's first, then the newest frame
    held_out: np.ndarray  # (p,) summed squared error of the model with at most c lags, on episodes it was not fitted to


def nested_regressions(train: Episodes, most: int) -> NestedRegressions:
    """Fit the regressions on 1 .. `most` frames, from inner products alone.

    A window of p frames holds the windows of its last c frames, so that one matrix of inner products holds those of all
    shorter regressions; what stands at an episode's start, where no longer window fits, is added c by c.

    Args:
        train: episodes of vectors, finite.
        most: p, at most the transitions of the longest episode.
    """
    obs, action = Units.of(*observation_moments(train)), Units.of(*step_statistics(train).action)
    parts = _parts(train)
    outputs, frame = len(obs.mean), len(obs.mean) + len(action.mean)

    def fit(products: np.ndarray) -> np.ndarray:
        return solve(products, outputs, RIDGE * max(products[outputs, outputs], 1.0))  # the constant's: rows

    products = [_products(part, _ends(part, most + 1), most, obs, action) for part in parts]
    weights: list[np.ndarray] = []
    full, short = np.zeros(most), np.zeros(most)  # held-out errors: of windows that fill c lags, or end at frame c
    for lags in range(most, 0, -1):
        size = outputs + 1 + lags * frame
        first = [_products(part, _first_ends(part, lags), lags, obs, action) for part in parts]
        products = [longer[:size, :size] + added for longer, added in zip(products, first, strict=True)]
        fitted = fit(products[0])
        short[lags - 1] = squared_errors(first[1], fitted).sum()
        full[lags - 1] = squared_errors(products[1], fitted).sum()
        weights.append(fit(products[0] + products[1]))
    return NestedRegressions(obs, action, weights[::-1], full + np.cumsum(short) - short)


def _parts(train: Episodes) -> tuple[Episodes, Episodes]:
    """Episodes to fit the orders to, and to judge them on: later parts of the same episodes, where there are few."""
    if len(train) < HELD_OUT:
        edges = [start + np.linspace(0, n - 1, HELD_OUT + 1).astype(np.int64) for start, n in _spans(train)]
        starts = np.concatenate([edge[:-1] for edge in edges])
        frames = np.concatenate([np.diff(edge) + 1 for edge in edges])
        train = replace(train, starts=starts, num_frames=frames, names=np.repeat(train.names, HELD_OUT).tolist())
    held = np.arange(len(train)) % HELD_OUT == HELD_OUT - 1
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))


def _spans(episodes: Episodes) -> Iterator[tuple[int, int]]:
    return zip(episodes.starts.tolist(), episodes.num_frames.tolist(), strict=True)


def _ends(episodes: Episodes, lags: int) -> np.ndarray:
    """Row numbers of the newest frames of all windows of so many frames that have a frame after them to predict."""
    ends = [np.arange(start + lags - 1, start + frames - 1) for start, frames in _spans(episodes)]
    return np.concatenate([np.zeros(0, np.int64), *ends])


def _first_ends(episodes: Episodes, lags: int) -> np.ndarray:
    """Of these, those whose window begins at an episode's start."""
    return (episodes.starts + lags - 1)[episodes.num_frames > lags]


def _products(episodes: Episodes, ends: np.ndarray, lags: int, obs: Units, action: Units) -> np.ndarray:
    """Inner products of [next observation | 1 | frames, newest first], over the windows that end at these rows."""
    size = len(obs.mean) + 1 + lags * (len(obs.mean) + len(action.mean))
    products = np.zeros((size, size))
    for some in np.array_split(ends, -(-len(ends) * size // BLOCK) or 1):
        rows = some[:, None] - np.arange(lags)
        frames = np.concatenate([obs.scaled(episodes.obs(rows)), action.scaled(episodes.action(rows))], axis=-1)
        parts = obs.scaled(episodes.obs(some + 1)), np.ones((len(some), 1)), *frames.swapaxes(0, 1)
        joined = np.concatenate(parts, axis=1)
        products += joined.T @ joined
    return products
