"""Least squares of the next observation on the last c frames, for c = 1 .. p at once, from inner products alone.

A window of p frames holds the windows of its last c frames, so that one matrix of inner products holds those of all
shorter regressions; what stands at an episode's start, where no longer window fits, is added c by c.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve

from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import Moments, observation_moments, step_statistics

RIDGE = 1e-11  # times the number of rows, of inputs with unit variance: just above the rounding of inner products
BLOCK = 1 << 22  # input entries at once: 32 MB
HELD_OUT = 5  # one of so many episodes


@dataclass(frozen=True)
class Scale:
    """To zero mean and unit variance; an entry that never varies is only centred."""

    mean: np.ndarray  # (X,) float64
    spread: np.ndarray  # (X,) float64

    @classmethod
    def of(cls, moments: Moments) -> "Scale":
        moves = moments.var > 1e-12 * (1 + np.square(moments.mean))
        return cls(moments.mean, np.where(moves, np.sqrt(moments.var), 1.0))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(..., X) -> (..., X) float64."""
        return (values - self.mean) / self.spread


@dataclass(frozen=True)
class Regression:
    """On c frames, newest first, in units of the scales."""

    constant: np.ndarray  # (O,)
    weights: np.ndarray  # (c, O + A, O)


@dataclass(frozen=True)
class Nested:
    """The regressions on 1 .. p frames; each is fitted to all windows of that many frames."""

    obs: Scale
    action: Scale
    regressions: list[Regression]  # the c-th at [c - 1]
    held_out: np.ndarray  # (p,) summed squared error of the model with at most c lags, on episodes that it did not see


def nested_regressions(train: Episodes, most: int) -> Nested:
    """Fit all regressions on 1 .. `most` frames.

    Args:
        train: episodes of vectors, finite.
        most: p, at most the transitions of the longest episode.
    """
    scales = Scale.of(observation_moments(train)), Scale.of(step_statistics(train).action)
    parts = _parts(train)
    outputs, width = len(scales[0].mean), sum(len(scale.mean) for scale in scales)
    products = [_products(part, _ends(part, most), most, *scales) for part in parts]
    regressions: list[Regression] = []
    full, short = np.zeros(most), np.zeros(most)  # held-out errors: of windows that fill c lags, or end at frame c
    for lags in range(most, 0, -1):
        if lags < most:
            size = outputs + 1 + lags * width
            at_start = [_products(part, _starts(part, lags), lags, *scales) for part in parts]
            products = [longer[:size, :size] + here for longer, here in zip(products, at_start, strict=True)]
            fitted = _solve(products[0], outputs)
            short[lags - 1] = _error(at_start[1], fitted)
        else:
            fitted = _solve(products[0], outputs)
        full[lags - 1] = _error(products[1], fitted)
        solution = _solve(products[0] + products[1], outputs)
        regressions.append(Regression(solution[0], solution[1:].reshape(lags, width, outputs)))
    return Nested(*scales, regressions[::-1], full + np.cumsum(short) - short)


def _parts(train: Episodes) -> tuple[Episodes, Episodes]:
    """What orders are fitted to, and judged on: other episodes, or, where they are few, later parts of the same."""
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
    """Row numbers of the newest frames of all windows of so many frames, each with a frame to predict behind it."""
    ends = [np.arange(start + lags - 1, start + frames - 1) for start, frames in _spans(episodes)]
    return np.concatenate([np.zeros(0, np.int64), *ends])


def _starts(episodes: Episodes, lags: int) -> np.ndarray:
    """Of them, those whose window begins at an episode's start."""
    return (episodes.starts + lags - 1)[episodes.num_frames > lags]


def _products(episodes: Episodes, ends: np.ndarray, lags: int, obs: Scale, action: Scale) -> np.ndarray:
    """Inner products of [next observation | 1 | frames, newest first], over the windows that end at these rows."""
    size = len(obs.mean) + 1 + lags * (len(obs.mean) + len(action.mean))
    products = np.zeros((size, size))
    for some in np.array_split(ends, -(-len(ends) * size // BLOCK) or 1):
        rows = some[:, None] - np.arange(lags)
        frames = np.concatenate([obs(episodes.obs(rows)), action(episodes.action(rows))], axis=-1)
        parts = obs(episodes.obs(some + 1)), np.ones((len(some), 1)), *frames.swapaxes(0, 1)
        joined = np.concatenate(parts, axis=1)
        products += joined.T @ joined
    return products


def _solve(products: np.ndarray, outputs: int) -> np.ndarray:
    """(1 + inputs, O): the constant's weights first."""
    inner = products[outputs:, outputs:]
    ridge = RIDGE * max(inner[0, 0], 1.0) * np.eye(len(inner))
    return solve(inner + ridge, products[outputs:, :outputs], assume_a="pos")


def _error(products: np.ndarray, solution: np.ndarray) -> float:
    """The summed squared error of a solution on other rows: |Y|^2 - 2 W'X'Y + W'X'X W."""
    outputs = solution.shape[1]
    residual = np.concatenate([np.eye(outputs), -solution])
    return max(float(np.trace(residual.T @ products @ residual)), 1e-12 * float(np.trace(products[:outputs, :outputs])))
