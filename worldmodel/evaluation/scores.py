"""Futures of a model's rollouts, held against what happened: likelihood, CRPS and PIT, entry by entry.

Given its own past each future is a mixture of normal distributions, and their mean over the futures is the distribution
of an entry so far ahead: of it is the PIT, with a random rank among the futures. The likelihood is that of a normal
distribution with its mean and deviation, since a density of few futures has holes. CRPS is of the drawn values, by the
estimator that does not depend on their number (Ferro 2014, doi:10.1002/qj.2270, equation 7).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.base import KNOTS, PER_OCTAVE
from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import observation_moments
from worldmodel.evaluation.rollouts import BLOCK, Start, states_at, to_model
from worldmodel.futures import Futures, futures
from worldmodel.mixture import Mixture
from worldmodel.model import Model


class Scores(NamedTuple):
    """Of R rollouts at K horizons, entry by entry, in deviations of the observations; NaN after a rollout's end."""

    horizon: np.ndarray  # (K,)
    unit: np.ndarray  # (O,) these deviations, in the units of the data
    nll: np.ndarray  # (R, K, O) nats
    crps: np.ndarray  # (R, K, O)
    pit: np.ndarray  # (R, K, O) in [0, 1]
    mean: np.ndarray  # (R, K, O) of the futures
    std: np.ndarray  # (R, K, O) of the futures
    truth: np.ndarray  # (R, K, O)
    point: np.ndarray  # (R, K, O) the model's point prediction

    def horizon_reached(self, k: int) -> np.ndarray:
        """Which rollouts (R,) bool reach the k-th horizon."""
        return np.asarray(np.isfinite(self.truth[:, k]).any(axis=-1))


def grid(longest: int, multiples: Iterable[int] = ()) -> np.ndarray:
    """Horizons that are measured up to the longest: those of the knots, and the multiples."""
    knots = 2 ** (np.arange(KNOTS) / PER_OCTAVE)
    return np.unique([n for n in [*np.round(knots).astype(int), *multiples] if n <= longest])


@torch.no_grad()
def scores(
    model: Model, episodes: Episodes, starts: list[Start], steps: int, samples: int, multiples: Iterable[int] = (),
    reference: Episodes | None = None, seed: int = 0,
) -> Scores:  # fmt: skip
    """Hold many futures of each rollout against what happened.

    Args:
        model: with a distribution, in evaluation mode.
        episodes: that the rollouts are of.
        starts: where each begins.
        steps: computed at once.
        samples: futures of each rollout; of members, rounded up to as many of each.
        multiples: horizons that are wanted beside those of the knots.
        reference: whose deviation is the unit; None: the episodes'.
        seed: of the futures.
    """
    lengths = np.array([start.length for start in starts])
    horizon = grid(int(lengths.max()), multiples)
    unit = _deviation(episodes if reference is None else reference)
    samples = -(-samples // model.members) * model.members  # as many of each
    found = np.full((7, len(starts), len(horizon), episodes.layout.obs_dim), np.nan)
    for rollouts, begin, truth, point, drawn in chunks(model, episodes, starts, steps, samples, seed):
        wanted = np.flatnonzero((horizon > begin) & (horizon <= begin + truth.shape[1]))
        if not len(wanted):
            continue
        at = horizon[wanted] - begin - 1
        rows = _scores(truth[:, at], point[:, at], _taken(drawn, at), samples, unit, seed + begin)
        found[:, rollouts, wanted] = np.stack(rows)
    found[:, ~(horizon <= lengths[:, None])] = np.nan
    return Scores(horizon, unit, *found)


def chunks(
    model: Model, episodes: Episodes, starts: list[Start], steps: int, samples: int, seed: int
) -> Iterator[tuple[slice, int, np.ndarray, Tensor, Futures]]:
    """Some rollouts, the steps before; of the next ones truth and point (R, C, O), and futures (R S, C, ...)."""
    z, h = states_at(model, episodes, starts, steps)
    lengths = np.array([start.length for start in starts])
    first_rows = np.array([episodes.starts[start.episode] + start.frame for start in starts])
    group = max(1, BLOCK // (samples * steps * max(episodes.layout.obs_dim, h.shape[-1])))
    generator = torch.Generator().manual_seed(seed)
    for some in (slice(first, first + group) for first in range(0, len(starts), group)):
        z_point, h_point = z[some], h[some]
        z_all, h_all = (x.repeat_interleave(samples, dim=0) for x in (z_point, h_point))
        for begin in range(0, int(lengths[some].max()), steps):
            ahead = np.arange(begin, min(begin + steps, lengths[some].max()))
            rows = first_rows[some, None] + np.minimum(ahead, lengths[some, None] - 1)
            action = to_model(episodes.action(rows), model)
            shape = len(z_all), len(ahead), episodes.layout.obs_dim + 1
            noise = torch.randn(shape, generator=generator).to(model.device)
            drawn = futures(model, z_all, h_all, action.repeat_interleave(samples, dim=0), noise)
            point = model.open_loop(z_point, h_point, action)
            yield some, begin, episodes.obs(rows + 1), point.obs, drawn
            z_all, h_all, z_point, h_point = drawn.z, drawn.h, point.z[:, -1], point.h[:, -1]


def mixed(drawn: Futures, samples: int) -> Mixture:
    """The distribution (R, C, S K, O) of which futures (R S, C, ...) are equal parts."""
    weight, mean, scale = (
        part.unflatten(0, (-1, samples)).movedim(1, 2).flatten(2, 3).double() for part in drawn.given_past
    )
    return Mixture(weight - np.log(samples), mean, scale)


def _scores(
    truth: np.ndarray, point: Tensor, drawn: Futures, samples: int, unit: np.ndarray, seed: int
) -> list[np.ndarray]:
    """The arrays of Scores (R, C, O) of some steps: truth, point (R, C, O), and futures (R S, C, ...)."""
    obs, mixture = drawn.obs.unflatten(0, (-1, samples)).double(), mixed(drawn, samples)  # (R, S, C, O)
    there = torch.from_numpy(truth).to(obs)
    rank = torch.rand(there.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(there)
    pit = (samples * mixture.cdf(there) + rank) / (samples + 1)
    ordered = obs.movedim(1, -1).sort(dim=-1).values  # (R, C, O, S)
    place = 2 * torch.arange(1, samples + 1, device=obs.device) - samples - 1
    apart = (ordered * place).sum(dim=-1) / (samples * (samples - 1))
    crps = (ordered - there.unsqueeze(-1)).abs().mean(dim=-1) - apart
    average, std = mixture.moments()
    alone = Mixture(std.new_zeros(1), average.unsqueeze(-2), std.clamp(min=1e-30).unsqueeze(-2))
    nll = -alone.entry_log_prob(there)
    rows = [nll.cpu().numpy() - np.log(unit), crps.cpu().numpy() / unit, pit.cpu().numpy()]
    return rows + [x.double().cpu().numpy() / unit for x in (average, std, there, point)]


def _taken(drawn: Futures, at: np.ndarray) -> Futures:
    return drawn._replace(obs=drawn.obs[:, at], given_past=Mixture(*(part[:, at] for part in drawn.given_past)))


def _deviation(reference: Episodes) -> np.ndarray:
    """(O,) of the observations; NaN of entries that never vary, which are not scored."""
    mean, var = observation_moments(reference)
    return np.sqrt(np.where(var > 1e-12 * (1 + np.square(mean)), var, np.nan))
