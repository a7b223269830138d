"""How well a model's distribution fits what happened, against the horizon: coverage, sharpness, PIT, and intervals.

The scores are those of scores.py, averaged over rollouts and entries.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.base import KNOTS, PER_OCTAVE
from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.rollouts import Start, append_rows
from worldmodel.evaluation.scores import Scores, chunks, grid, mixed, scores
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.mixture import Mixture
from worldmodel.model import Model
from worldmodel.networks import LEVELS, normal_widths

BINS = 10  # of the PIT's histogram
LOW_IS_GOOD = "nll", "crps", "crps_point", "nmse_mean", "sharpness90"  # of what is logged
SHARES = "coverage90", "conformal90"  # best at 0.9
ROLLOUTS = RolloutOptions(starts=2, max_episodes=64)
ENOUGH = 50  # rollouts for the quantiles of a horizon


@dataclass(frozen=True)
class Calibration:
    """Means over rollouts and entries, in deviations of the observations."""

    horizon: np.ndarray  # (K,)
    nll: np.ndarray  # (K,) nats an entry
    crps: np.ndarray  # (K,)
    crps_point: np.ndarray  # (K,) of the point prediction with the deviation of its own errors so far ahead
    nmse_mean: np.ndarray  # (K,) squared error of the futures' mean
    coverage: np.ndarray  # (3, K) share of the truth within the central intervals of LEVELS
    conformal: np.ndarray  # (3, K) within those that the validation episodes corrected
    sharpness: np.ndarray  # (K,) mean width of the corrected 90% interval
    pit: np.ndarray  # (K, BINS) histogram, which sums to 1
    regret: dict[str, np.ndarray] = field(default_factory=dict)  # (K,) each, beside the floor: see `_regret`

    def columns(self) -> dict[str, np.ndarray]:
        """Name -> values (K,), as they are written and logged."""
        names = [f"{level:.0%}".rstrip("%") for level in LEVELS]
        return {
            "nll": self.nll, "crps": self.crps, "crps_point": self.crps_point, "nmse_mean": self.nmse_mean,
            **{f"coverage{name}": values for name, values in zip(names, self.coverage, strict=True)},
            **{f"conformal{name}": values for name, values in zip(names, self.conformal, strict=True)},
            "sharpness90": self.sharpness,
            **self.regret, **{f"pit{i}": self.pit[:, i] for i in range(BINS)},
        }  # fmt: skip

    def at(self, horizons: Iterable[int]) -> dict[str, dict[int, float]]:
        """Name -> horizon -> value, of the main ones, at those of the horizons that rollouts reach."""
        index, columns = {int(n): i for i, n in enumerate(self.horizon)}, self.columns()
        reached = [n for n in horizons if n in index]
        shown = (*LOW_IS_GOOD, *SHARES, *self.regret)
        return {name: {n: float(columns[name][index[n]]) for n in reached} for name in shown}

    def metrics(self, horizons: Iterable[int]) -> dict[str, float]:
        """The same, as they are logged."""
        return {f"rollout/{name}@{n}": value for name, of in self.at(horizons).items() for n, value in of.items()}

    def append_csv(self, path: Path) -> None:
        """Append rows of horizon, metric, value to a rollout.csv."""
        columns = self.columns().items()
        append_rows(
            path,
            ((int(n), name, float(v)) for name, values in columns for n, v in zip(self.horizon, values, strict=True)),
        )


def summary(scores: Scores, model: Model, floor: Scores | None = None) -> Calibration:
    """The means of scores, with the intervals that a model's validation episodes corrected; `floor` as in floor.py."""
    nll, crps, pit, mean, std, truth, point = scores[2:]
    kept = ~np.isnan(pit)
    width = model.interval(torch.from_numpy(scores.horizon)).double().cpu().numpy()  # (3, K, O)
    distance = np.abs(truth - mean)
    with np.errstate(invalid="ignore"):
        own = np.sqrt(np.nanmean(np.square(truth - point), axis=0, keepdims=True))  # (1, K, O)
        within = [np.abs(pit - 0.5) <= level / 2 for level in LEVELS]
        corrected = [distance <= w * std for w in width]
    shape = np.broadcast_to(np.maximum(own, 1e-12), point.shape)
    constant = Mixture(torch.zeros(1), *(torch.from_numpy(x[:, :, None].copy()) for x in (point, shape)))
    reference = constant.crps(torch.from_numpy(truth)).numpy()
    counts = [_mean((pit >= i / BINS) & ((pit < (i + 1) / BINS) | (i + 1 == BINS)), kept) for i in range(BINS)]
    return Calibration(
        scores.horizon, _mean(nll, kept), _mean(crps, kept), _mean(reference, kept), _mean(np.square(distance), kept),
        np.stack([_mean(x, kept) for x in within]), np.stack([_mean(x, kept) for x in corrected]),
        _mean(2 * width[1] * std, kept), np.stack(counts, axis=-1), {} if floor is None else _regret(scores, floor),
    )  # fmt: skip


def _regret(scores: Scores, floor: Scores) -> dict[str, np.ndarray]:
    """What a model loses to the floor: a ratio of errors and of CRPS, and a difference of nats an entry, (K,) each."""
    kept = ~np.isnan(scores.pit)
    error, least = (_mean(np.square(part.truth - part.point), kept) for part in (scores, floor))
    crps, nll = ([_mean(getattr(part, name), kept) for part in (scores, floor)] for name in ("crps", "nll"))
    return {"nmse_regret": error / least, "crps_regret": crps[0] / crps[1], "nll_regret": nll[0] - nll[1]}


def widths(scores: Scores) -> Tensor:
    """Half the width of the intervals of LEVELS at each knot, in deviations of the futures, (3, KNOTS, O).

    Split conformal prediction (Lei et al. 2018, arXiv 1604.04173, section 2.2): the quantile of the normalised
    distances |o - mean| / std that covers one more than the wanted share of N + 1. Between horizons, the next one's;
    where fewer than 50 rollouts reach so far, the distances of shorter horizons count too.
    """
    distance = np.abs(scores.truth - scores.mean) / np.maximum(scores.std, 1e-300)
    horizon = grid(int(scores.horizon[-1]))
    at = [distance[scores.horizon_reached(k), k] for k in np.searchsorted(scores.horizon, horizon)]
    each = []
    for k, some in enumerate(at):
        for shorter in reversed(at[:k]):
            some = some if len(some) >= ENOUGH else np.concatenate([some, shorter])
        ranks = [min(int(np.ceil((len(some) + 1) * level)), len(some)) - 1 for level in LEVELS]
        each.append(np.sort(some, axis=0)[ranks])
    knots = 2 ** (np.arange(KNOTS) / PER_OCTAVE)
    nearest = np.searchsorted(horizon, np.round(knots)).clip(max=len(horizon) - 1)
    found = torch.from_numpy(np.stack(each, axis=1)[:, nearest]).float()
    return torch.where(found < 1e6, found, normal_widths(found.shape[-1]))  # of what never varies, or has diverged


def scored(model: Model, whole: Episodes, steps: int, options: RolloutOptions) -> Scores:
    """The scores of futures of two rollouts of each of a split's first episodes, up to fifty times T.

    Args:
        model: with a distribution, in evaluation mode.
        whole: the split.
        steps: T, the trained horizon.
        options: how many futures, and which multiples of T are measured beside the knots.
    """
    horizons = [multiple * steps for multiple in options.multiples]
    return scores(model, *rollouts_of(whole, steps), steps, options.samples, horizons, whole)


def rollouts_of(whole: Episodes, steps: int) -> tuple[Episodes, list[Start]]:
    """The first episodes of a split, and two rollouts of each; steps: T."""
    episodes = ROLLOUTS.first_episodes(whole)
    return episodes, ROLLOUTS.rollouts(episodes, steps)[0]


@torch.no_grad()
def with_bands(model: Model, episodes: Episodes, curves: HorizonCurves, steps: int, samples: int) -> HorizonCurves:
    """The same curves, whose examples have the model's 90% intervals beside its predictions."""
    starts, samples = [example.start for example in curves.examples], -(-samples // model.members) * model.members
    parts: list[list[np.ndarray]] = [[] for _ in starts]
    for rollouts, begin, truth, _, drawn in chunks(model, episodes, starts, steps, samples, seed=2):
        mean, std = mixed(drawn, samples).moments()
        width = model.interval(torch.arange(begin + 1, begin + truth.shape[1] + 1))[1].to(mean) * std
        for part, ends in zip(parts[rollouts], torch.stack([mean - width, mean + width], dim=1), strict=True):
            part.append(ends.float().cpu().numpy())
    bands = [np.concatenate(part, axis=1)[:, : start.length] for part, start in zip(parts, starts, strict=True)]
    shown = [replace(e, band=band[:, : len(e.prediction)]) for e, band in zip(curves.examples, bands, strict=True)]
    return replace(curves, examples=shown)


def _mean(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Over rollouts and entries (R, K, O) -> (K,)."""
    return np.where(kept, values, 0).sum(axis=(0, 2)) / np.maximum(kept.sum(axis=(0, 2)), 1)
