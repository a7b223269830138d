"""A trained model, a baseline and the floor, measured on the same episodes by the same code."""

from dataclasses import dataclass, replace

import numpy as np

from worldmodel.comparison.results import Curve, Curves, Errors, ExampleRollout, Reference
from worldmodel.envs import LINEAR_GAUSSIAN
from worldmodel.envs.linear import LinearSystem, linear_system
from worldmodel.evaluation.baselines import AutoRegression, CopyLast, Mean
from worldmodel.evaluation.curves import closed_loop_curve, horizon_curves
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.rollouts import Example, Forecaster
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.modules.data_module import EpisodeDataModule

MOST_ENTRIES = 3  # of an observation, in an example


@dataclass(frozen=True)
class Measured:
    """What a model came to on the test episodes."""

    errors: Errors
    curves: Curves
    valid_time: float  # steps
    norm_growth: float  # of ||h|| a step, in closed loop
    examples: list[ExampleRollout]


def measure(model: Forecaster, data: EpisodeDataModule, rollout: RolloutOptions) -> Measured:
    """Closed and open loop, as `rollout` says how far, from where and on how many episodes.

    Args:
        model: in evaluation mode.
        data: its test episodes are used; the validation episodes, if there are none.
        rollout: the options.
    """
    whole = data.splits["test"] if len(data.splits["test"]) else data.splits["val"]
    episodes = rollout.first_episodes(whole)
    longest = max(rollout.multiples) * data.steps
    closed = closed_loop_curve(model, episodes, data.steps, longest, whole)
    opened = horizon_curves(model, episodes, data.steps, rollout, whole)
    horizons = [multiple * data.steps for multiple in rollout.multiples]
    curves: Curves = {
        "closed": _curve(closed.nmse, closed.hidden_norm, closed.episodes),
        "open": _curve(opened.nmse, opened.hidden_norm, opened.rollouts),
    }
    return Measured(
        errors={
            "closed": {
                horizon: closed.window(before, horizon)
                for before, horizon in zip([0, *horizons], horizons, strict=False)
                if horizon <= len(closed.nmse)
            },
            "open": {horizon: float(opened.nmse[horizon - 1]) for horizon in horizons if horizon <= len(opened.nmse)},
        },
        curves=curves,
        valid_time=opened.valid_time,
        norm_growth=closed.norm_growth(),
        examples=[_example(example) for example in opened.examples],
    )


def references(data: EpisodeDataModule, rollout: RolloutOptions) -> list[Reference]:
    """What needs no training: copy-last, the mean, a linear autoregression; where it is known, the Kalman filter."""
    train = data.splits["train"]
    found: dict[str, tuple[str, Forecaster]] = {
        "copy_last": ("copy the last observation", CopyLast()),
        "mean": ("predict the mean", Mean(train)),
    }
    if not data.images:
        regression = AutoRegression.fit(train, None, data.steps)
        found["autoregression"] = (f"linear autoregression of order {regression.lags}, least squares", regression)
    if (system := known_system(data)) is not None:
        found["kalman"] = ("Kalman filter, the floor", KalmanFilter(system))
    made = []
    for name, (title, model) in found.items():
        measured = measure(model, data, rollout)
        curves: Curves = {  # their states are bookkeeping: norms would mean nothing
            loop: replace(curve, hidden_norm=np.full_like(curve.nmse, np.nan))
            for loop, curve in measured.curves.items()
        }
        made.append(Reference(name, title, measured.errors, curves))
    return made


def known_system(data: EpisodeDataModule) -> LinearSystem | None:
    """The system that made the data, if it is linear and Gaussian, and all of it came from one."""
    collected = data.test_source.provenance.get("collected") or []
    options = [past.get("env_kwargs", {}) for past in collected if past.get("env_id") == LINEAR_GAUSSIAN]
    if not options or len(options) < len(collected) or any(other != options[0] for other in options):
        return None
    if any(past.get("observe") is not None for past in collected):
        return None  # the filter sees all outputs
    return linear_system(**options[0])


def _curve(nmse: np.ndarray, hidden_norm: np.ndarray, count: np.ndarray) -> Curve:
    return Curve(np.arange(1, len(nmse) + 1), nmse, hidden_norm, count)


def _example(example: Example) -> ExampleRollout:
    size = min(MOST_ENTRIES, example.layout.vector_dim)
    names = [f"{key}[{i}]" for key, entries in example.layout.vectors.items() for i in range(entries)]
    return ExampleRollout(example.name, example.truth[:, :size], example.prediction[:, :size], names[:size])
