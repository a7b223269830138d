"""Error against the horizon in open loop, and against the time since an episode's start in closed loop."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worldmodel.data.episodes import Episodes
from worldmodel.durable import whole_file
from worldmodel.evaluation.rollouts import BLOCK, Example, Forecaster, Ruler, Start, roll_out, to_model
from worldmodel.evaluation.selection import RolloutOptions

BASELINES = ("copy_last", "mean", "linear")  # fields of HorizonCurves


@dataclass(frozen=True)
class HorizonCurves:
    """Open-loop errors 1 .. H steps ahead, divided by the observations' variance: 1.0 predicts the mean."""

    horizon: np.ndarray  # (H,)
    nmse: np.ndarray  # (H,) of the model
    copy_last: np.ndarray  # (H,) of the last observation
    mean: np.ndarray  # (H,) of the mean observation
    hidden_norm: np.ndarray  # (H,) mean ||h||
    rollouts: np.ndarray  # (H,) how many are that long
    valid_time: float  # mean over rollouts of the first step with an error above the threshold
    threshold: float
    burn_in: int
    examples: list[Example]
    linear: np.ndarray | None = None  # (H,) of a linear autoregression (evaluation/linear.py); None: not measured
    disagreement: np.ndarray | None = None  # (H,) variance of the members' predictions; None: there is one

    @property
    def baselines(self) -> dict[str, np.ndarray]:
        """The errors (H,) of the baselines that were measured."""
        return {name: values for name in BASELINES if (values := getattr(self, name)) is not None}

    @property
    def crossing(self) -> int | None:
        """The first horizon at which the model's error passes the threshold; None: nowhere."""
        above = np.flatnonzero(self.nmse > self.threshold)
        return int(self.horizon[above[0]]) if len(above) else None

    def metrics(self, horizons: Iterable[int]) -> dict[str, float]:
        """The errors of the model and the baselines at some horizons, as they are logged."""
        errors = {"nmse": self.nmse, **self.baselines}
        if self.disagreement is not None:
            errors["disagreement"] = self.disagreement
        return {f"rollout/{name}@{n}": float(values[n - 1]) for n in horizons for name, values in errors.items()}

    def write_csv(self, path: Path) -> None:
        """Write rows of horizon, metric, value."""
        columns = {"nmse": self.nmse, **self.baselines, "hidden_norm": self.hidden_norm, "rollouts": self.rollouts}
        if self.disagreement is not None:
            columns["disagreement"] = self.disagreement
        with whole_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["horizon", "metric", "value"])
            for i, horizon in enumerate(self.horizon):
                writer.writerows((int(horizon), name, float(values[i])) for name, values in columns.items())


def horizon_curves(
    model: Forecaster,
    episodes: Episodes,
    steps: int,
    options: RolloutOptions | None = None,
    reference: Episodes | None = None,
) -> HorizonCurves:
    """Roll a model out on episodes, without observations, from several frames of each.

    The model sees an episode's frames up to a start, then only the actions. Memory grows with the number of rollouts
    times the longest horizon, not with the episodes' lengths.

    Args:
        model: in evaluation mode.
        episodes: at least one; all are evaluated.
        steps: T, the trained horizon.
        options: how far and from where; None: the defaults.
        reference: whose mean and variance the errors are held against; None: the episodes'.
    """
    options = options or RolloutOptions()
    starts, burn_in = options.rollouts(episodes, steps)
    firsts: dict[int, int] = {}
    for i, start in enumerate(starts):
        firsts.setdefault(start.episode, i)
    kept = sorted(firsts.values(), key=lambda i: -starts[i].length)[: options.examples]  # the longest ones
    return curves_from(model, episodes, starts, steps, burn_in, options.threshold, kept, reference)


@torch.no_grad()
def curves_from(
    model: Forecaster,
    episodes: Episodes,
    starts: list[Start],
    steps: int,
    burn_in: int,
    threshold: float,
    kept: list[int],
    reference: Episodes | None = None,
) -> HorizonCurves:
    """As `horizon_curves`, from chosen starts; `kept` are the rollouts that become examples."""
    ruler = Ruler(episodes if reference is None else reference)
    measured, examples = roll_out(model, episodes, starts, steps, ruler, kept)
    lengths = np.array([start.length for start in starts])
    ahead = np.arange(1, lengths.max() + 1)
    valid = ahead <= lengths[:, None]
    above = (measured[0] > threshold) & valid
    time = np.where(above.any(axis=1), above.argmax(axis=1) + 1, lengths)
    count = valid.sum(axis=0)
    nmse, copy_last, mean, norm, apart = np.where(valid, measured, 0).sum(axis=1) / count
    disagreement = None if np.isnan(apart).all() else apart
    valid_time = float(time.mean())
    return HorizonCurves(
        ahead, nmse, copy_last, mean, norm, count, valid_time, threshold, burn_in, examples, disagreement=disagreement
    )


@dataclass(frozen=True)
class ClosedLoopCurve:
    """One-step errors after n = 1 .. N observed frames, divided by the observations' variance."""

    nmse: np.ndarray  # (N,)
    hidden_norm: np.ndarray  # (N,) mean ||h||
    episodes: np.ndarray  # (N,) how many are that long

    def window(self, begin: int, end: int) -> float:
        """The mean over all predictions after begin + 1 .. end frames."""
        part = slice(begin, end)
        return float(np.average(self.nmse[part], weights=self.episodes[part]))

    def norm_growth(self) -> float:
        """Slope of the mean ||h|| over the steps, by least squares; infinite where a norm is not finite."""
        if not np.isfinite(self.hidden_norm).all():
            return float("inf")
        step = np.arange(len(self.hidden_norm))
        return float(np.polyfit(step, self.hidden_norm, 1, w=np.sqrt(self.episodes))[0]) if len(step) > 1 else 0.0


@torch.no_grad()
def closed_loop_curve(
    model: Forecaster, episodes: Episodes, steps: int, longest: int, reference: Episodes | None = None
) -> ClosedLoopCurve:
    """Let a model predict each next frame of episodes from all frames before it, from the episodes' starts on.

    Args:
        model: in evaluation mode.
        episodes: at least one.
        steps: computed at once.
        longest: frames of an episode that are evaluated, at most.
        reference: whose variance the errors are divided by; None: the episodes'.
    """
    ruler = Ruler(episodes if reference is None else reference)
    lengths = np.minimum(episodes.num_frames - 1, longest)
    error, norm = np.zeros(lengths.max()), np.zeros(lengths.max())
    group = max(1, BLOCK // (steps * episodes.layout.obs_dim))
    for first in range(0, len(episodes), group):
        some = slice(first, first + group)
        carry = None
        for begin in range(0, int(lengths[some].max()), steps):
            ahead = np.arange(begin, min(begin + steps, lengths[some].max()))
            rows = episodes.starts[some, None] + np.minimum(ahead, lengths[some, None] - 1)
            is_first = to_model(np.broadcast_to(ahead == 0, rows.shape), model)
            obs, action = to_model(episodes.obs(rows), model), to_model(episodes.action(rows), model)
            pred, h, carry = model.closed_loop(obs, action, is_first, carry)
            within = ahead < lengths[some, None]
            errors = ruler.error(pred.float().cpu().numpy(), episodes.obs(rows + 1))
            norms = h.double().norm(dim=-1).cpu().numpy()
            error[ahead] += np.where(within, errors, 0).sum(axis=0)
            norm[ahead] += np.where(within, norms, 0).sum(axis=0)
    count = (lengths[:, None] > np.arange(lengths.max())).sum(axis=0)
    return ClosedLoopCurve(error / count, norm / count, count)
