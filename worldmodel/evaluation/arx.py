"""Autoregressions with exogenous inputs (ARX) of 1 .. p lags by least squares, in one pass over the episodes.

They are a baseline (baselines.AutoRegression), and the base of a model's predictions (base.LinearBase).
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldmodel.base import CLIP, KNOTS, PER_OCTAVE, LinearBase, Rollout
from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import observation_moments, observation_range, step_statistics
from worldmodel.errors import UserError
from worldmodel.nets import Normalizer
from worldmodel.regression import Units, held_out, solve, squared_errors

WIDEST = 1024  # inputs of a regression: where frames are wide, fewer lags are tried
RIDGE = 1e-11  # times the number of rows, of inputs with unit variance: just above the rounding of inner products
BLOCK = 1 << 22  # input entries at once: 32 MB
ENTRIES = 1 << 26  # in all, rows times width: at least 64 rows a weight, and seconds to fit
HELD_OUT = 5  # every fifth episode is held out
SMALLEST = 1e-5  # deviation of a base's error, in the observations' deviations
MOST_LAGS = 16  # of a base whose number of lags is chosen, or T where that is more
FEW = 2  # lags of a base, unless more are worth it
WORTH = 1.2  # they are if the corrected error of few is larger by more than this factor
SAMPLE, FEATURES = 20_000, 256  # rows and random features that decide it
ROLLOUTS = 2_000  # of a base alone, that its drifts are measured on


@dataclass(frozen=True)
class NestedRegressions:
    """Regressions of the next observation on the last 1 .. p frames, each fitted to all windows of that many frames."""

    obs: Units[np.ndarray]
    action: Units[np.ndarray]
    weights: list[np.ndarray]  # on c frames at [c - 1]: (1 + c (O + A), O), the constant's first, then the newest frame
    errors: (
        np.ndarray
    )  # (p, O) mean squared error of the regression on c frames, on held-out episodes, in unit variance
    first_errors: np.ndarray  # (p, O) the same after the first c frames of an episode, of all episodes
    moved: np.ndarray  # (O,) mean squared difference of neighbouring observations
    held_out: np.ndarray  # (p,) summed squared error of the model with at most c lags, on episodes it was not fitted to

    @property
    def most(self) -> int:
        """p."""
        return len(self.weights)

    @property
    def best(self) -> int:
        """Of 1, 2, 4, 8, .., p lags the number with the least error on held-out episodes."""
        powers = [2**i for i in range(self.most.bit_length()) if 2**i < self.most]
        return min([*powers, self.most], key=lambda lags: self.held_out[lags - 1])

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """The next observations (N, O) after the newest frames (N, c, O + A), newest first, all in unit variance."""
        weights = self.weights[frames.shape[1] - 1]
        return weights[0] + frames.reshape(len(frames), -1) @ weights[1:]


def fit_nested(train: Episodes, lags: int | None, max_lags: int) -> NestedRegressions:
    """Fit to the transitions of some episodes, or to a part of many, in memory that does not grow with them.

    Args:
        train: at least one episode, of vectors.
        lags: p; None: as many as make 1024 inputs, as the longest episode has, or `max_lags`.
        max_lags: the trained horizon.

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
    return nested_regressions(_some(train, ENTRIES // (most * (layout.vector_dim + layout.action_dim))), most)


def _some(episodes: Episodes, rows: int) -> Episodes:
    """Episodes with about so many transitions, spread evenly, or all if they have no more."""
    if episodes.num_transitions <= rows:
        return episodes
    number = max(1, round(len(episodes) * rows / episodes.num_transitions))
    some = episodes.select(np.linspace(0, len(episodes) - 1, number).astype(int))
    if some.num_transitions > 2 * rows:  # few long ones
        some = replace(some, num_frames=np.minimum(some.num_frames, rows // number + 1))
    return some


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
    errors, first_errors = np.zeros((2, most, outputs))
    full, short = np.zeros(most), np.zeros(most)  # held-out errors: of windows that fill c lags, or end at frame c
    for lags in range(most, 0, -1):
        size = outputs + 1 + lags * frame
        first = [_products(part, _first_ends(part, lags), lags, obs, action) for part in parts]
        products = [longer[:size, :size] + added for longer, added in zip(products, first, strict=True)]
        fitted = fit(products[0])
        short[lags - 1] = squared_errors(first[1], fitted).sum()
        sums = squared_errors(products[1], fitted)
        full[lags - 1], errors[lags - 1] = sums.sum(), sums / max(products[1][outputs, outputs], 1.0)
        weights.append(fit(products[0] + products[1]))
        first_errors[lags - 1] = squared_errors(first[0] + first[1], weights[-1]) / max(len(train), 1)
    both = products[0] + products[1]  # of one frame, by now
    moved = squared_errors(both, np.eye(1 + frame, outputs, -1)) / max(both[outputs, outputs], 1.0)
    held_out = full + np.cumsum(short) - short
    return NestedRegressions(obs, action, weights[::-1], errors, first_errors, moved, held_out)


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


def base_lags(train: Episodes, nested: NestedRegressions) -> int:
    """How many frames the base of a model reads: two, unless the best number leaves a correction much less to do.

    Two frames hold positions and velocities; what a linear function of them misses, a rule can learn from them. Further
    frames replace some of that by an approximation, which a rule would have to undo; but where there is noise, it takes
    many frames to see through it, and the line does so better than a rule. Which of the two it is, a regression of the
    base's error shows, on random features of what a rule sees (extreme learning machine, Huang et al. 2006).
    """
    best = nested.best
    if best <= FEW:
        return best
    few, many = (_corrected_error(train, nested, lags, best) for lags in (FEW, best))
    return best if few is None or many is None or few > WORTH * many else FEW


def _corrected_error(train: Episodes, nested: NestedRegressions, lags: int, most: int) -> float | None:
    """Mean squared error of the regression on so many lags, corrected by another; None for too few rows."""
    ends, rng = _ends(train, most + 1), np.random.default_rng(0)
    ends = np.sort(rng.permutation(ends)[:SAMPLE])
    rows = ends[:, None] - np.arange(lags + 1)
    obs, action = nested.obs.scaled(train.obs(rows)), nested.action.scaled(train.action(rows))
    frames = np.concatenate([obs, action], axis=-1)
    error = nested.obs.scaled(train.obs(ends + 1)) - nested.predict(frames[:, :-1])
    innovation, moved = obs[:, 0] - nested.predict(frames[:, 1:]), obs[:, 0] - obs[:, 1]
    parts = obs[:, 0], action[:, 0], *(part / np.maximum(part.std(axis=0), 1e-9) for part in (innovation, moved))
    inputs = np.concatenate([part.clip(-CLIP, CLIP) for part in parts], axis=1)
    hidden = np.tanh(inputs @ rng.standard_normal((inputs.shape[1], FEATURES)) / inputs.shape[1] ** 0.5)
    half = np.searchsorted(train.starts, ends, side="right") % 2 == 0 if len(train) > 1 else ends < np.median(ends)
    corrections = held_out(np.concatenate([inputs, hidden], axis=1), error, half)
    return None if corrections is None else float(np.square(error - corrections).sum(axis=1).mean())


def fitted_base(
    train: Episodes, kind: str, lags: int | None, steps: int, obs: Normalizer, action: Normalizer
) -> LinearBase:
    """The base of a model that is trained on segments of T = `steps`.

    Args:
        train: episodes of vectors.
        kind: linear, or last: the last observation stays.
        lags: frames that a linear base reads; None: chosen.
        steps: T.
        obs: the model's units of observations.
        action: and of actions.
    """
    nested = fit_nested(train, lags if kind == "linear" else 1, max(MOST_LAGS, steps))
    chosen = base_lags(train, nested) if lags is None else nested.most
    base = LinearBase(train.layout.obs_dim, train.layout.action_dim, chosen)
    obs, action = (deepcopy(norm).float().cpu() for norm in (obs, action))
    _fit_base(base, train, nested, obs, action, steps, kind == "last")
    return base


def _fit_base(
    base: LinearBase,
    train: Episodes,
    nested: NestedRegressions,
    obs: Normalizer,
    action: Normalizer,
    steps: int,
    copies: bool,
) -> None:
    """Give a base its coefficients, of regressions on at least as many frames, in units that are normalised so.

    Its drifts are measured up to T = `steps` ahead. With `copies` it predicts that the last observation stays.
    """
    pairs = [(obs, nested.obs), (action, nested.action)]
    scale = np.concatenate([_numbers(norm.scale) / units.spread for norm, units in pairs])
    shift = np.concatenate([(_numbers(norm.mean) - units.mean) / units.spread for norm, units in pairs])
    outputs = base.obs_dim
    for lags in range(1, base.lags + 1):
        constant, weights = nested.weights[lags - 1][0], nested.weights[lags - 1][1:]
        constant = (constant + np.tile(shift, lags) @ weights - shift[:outputs]) / scale[:outputs]
        weights = np.tile(scale, lags)[:, None] * weights / scale[:outputs]
        base.weights[lags - 1, : len(weights)] = torch.from_numpy(weights)
        base.constants[lags - 1] = torch.from_numpy(constant)
    moved = np.sqrt(nested.moved) / scale[:outputs]
    deviations = np.sqrt(np.append(nested.first_errors[: base.lags - 1], nested.errors[base.lags - 1 : base.lags], 0))
    deviations /= scale[:outputs]
    if copies:
        base.weights.copy_(torch.eye(base.frame_dim, outputs))
        base.constants.zero_()
        deviations = moved[None]
    base.scales.copy_(torch.from_numpy(np.maximum(deviations, SMALLEST)))
    base.spread.copy_(torch.from_numpy(np.maximum(moved, SMALLEST)))
    low, high = (obs(torch.from_numpy(edge).to(obs.mean)) for edge in observation_range(train))
    base.low.copy_(2 * low - high)
    base.high.copy_(2 * high - low)
    _fit_drifts(base, train, obs, action, steps)


@torch.no_grad()
def _fit_drifts(base: LinearBase, train: Episodes, obs: Normalizer, action: Normalizer, steps: int) -> None:
    """Roll the base out alone, from a sample of frames with p frames before and, if there are, `steps` after."""
    steps = min(steps, max(1, int(train.num_frames.max()) - base.lags))
    ends = _ends(train, base.lags + steps - 1)
    some = np.random.default_rng(0).permutation(ends)[:ROLLOUTS]
    if not len(some):
        return
    rows = some[:, None] + np.arange(2 - base.lags - steps, 2)
    seen, acted = obs(torch.from_numpy(train.obs(rows))), action(torch.from_numpy(train.action(rows)))
    is_first = torch.zeros(rows.shape, dtype=torch.bool)[:, : base.lags]
    frames, _, _ = base.observe(seen[:, : base.lags], acted[:, : base.lags], is_first, None)
    run = Rollout(base, frames[:, -1])
    for t in range(base.lags - 1, base.lags - 1 + steps):
        run.step(acted[:, t], torch.zeros_like(seen[:, 0]))
    drifts = (torch.stack(run.obs[1:], dim=1) - seen[:, base.lags :]).square().mean(dim=0).sqrt()
    ahead = (2 ** (torch.arange(KNOTS) / PER_OCTAVE)).round().long().clamp(max=steps)
    base.drifts.copy_(drifts[ahead - 1].clamp(SMALLEST, 1.0))  # 1: of predicting the mean


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
