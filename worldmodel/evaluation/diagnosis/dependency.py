"""Whether the data depends on frames further back than gradients reach."""

from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.ridge import explained, held_out, narrowed
from worldmodel.evaluation.diagnosis.stretch import Model, ages

FURTHEST = 4  # times T
LAGS = 128  # that are tried
WIDEST = 16  # entries of an observation or action; more are projected
INPUTS = 96  # of the regression on what lies within the horizon


@dataclass(frozen=True)
class Dependency:
    """What a frame beyond the horizon linearly explains of the model's error."""

    lag: int  # the one that explains most
    explains: float  # R^2 on held-out lanes, of the error that is left by the frames within the horizon
    share: float  # of the observations' variance that this is
    lags: list[int]
    curve: list[float]  # R^2 of each lag


@torch.no_grad()
def dependency(model: Model, stretch: Batch, steps: int) -> Dependency | None:
    """Regress the error of the next observation on frames at lags beyond T = `steps`, one lag at a time.

    What a linear regression on the frames within the horizon explains is taken away first: an error of a model that has
    learned little depends on everything that the present depends on. It sees dependencies at a fixed lag that are at
    least partly linear; None where no episode is long enough, or the stretch has one lane.
    """
    pred, _, _ = model.closed_loop(stretch["obs"][:, :-1], stretch["action"], stretch["is_first"], None)
    truth = stretch["obs"][:, 1:]
    if not pred.isfinite().all():
        return None
    scale = truth[stretch["valid"]].double().std(dim=0).clamp(min=1e-6).numpy()
    truth, error = (narrowed(values.double().numpy() / scale, WIDEST) for values in (truth, truth - pred))
    frames = narrowed(stretch["obs"][:, :-1].double().numpy() / scale, WIDEST)
    frames = np.concatenate([frames, narrowed(stretch["action"].double().numpy(), WIDEST)], axis=-1)
    valid, history = stretch["valid"].numpy(), ages(stretch["is_first"]).numpy()
    near = _near(steps, frames.shape[-1])
    lane, step = np.nonzero(valid & (history >= steps))
    half = lane % 2 == 0
    left = error[lane, step]
    inputs = np.concatenate([frames[lane, step - lag] for lag in near], axis=-1)
    predictions = held_out(inputs, left, half)
    if predictions is None:
        return None
    if explained(predictions, left) > 0:
        left = left - predictions
    lags = range(steps + 1, min(FURTHEST * steps, history.max()) + 1)
    lags = list(lags)[:: max(1, -(-len(lags) // LAGS))]
    curve, tried = [], []
    for lag in lags:
        old = history[lane, step] >= lag
        values = held_out(frames[lane[old], step[old] - lag], left[old], half[old])
        if values is not None:
            tried.append(lag)
            curve.append(max(explained(values, left[old]), 0.0))
    if not curve:
        return None
    best = int(np.argmax(curve))
    variance = np.square(truth[valid] - truth[valid].mean(axis=0)).sum(axis=-1).mean()
    share = curve[best] * float(left.var(axis=0).sum() / max(variance, 1e-12))
    return Dependency(tried[best], curve[best], share, tried, curve)


def _near(steps: int, width: int) -> list[int]:
    """Lags within the horizon: all of them, or as many as a regression bears, denser near the present."""
    most = max(2, INPUTS // max(width, 1))
    if steps < most:
        return list(range(steps + 1))
    return sorted(set(np.geomspace(1, steps + 1, most).astype(int) - 1))
