"""Errors of a trained model, a baseline and the floor, on the same episodes by the same code; and a model's size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.comparison.results import Curve, Curves, Errors, ExampleRollout, Reference, ScoresAt
from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.baselines import CopyLast, Mean
from worldmodel.evaluation.calibration import scored, summary
from worldmodel.evaluation.curves import closed_loop_curve, horizon_curves
from worldmodel.evaluation.floor import Floor, known_system
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.linear import linear_baseline
from worldmodel.evaluation.rollouts import Example, Forecaster
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.model import Model
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.world_model import WorldModel

MOST_ENTRIES = 3  # of an observation, that an example keeps


@dataclass(frozen=True)
class Measurement:
    """A model's errors on the test episodes."""

    errors: Errors
    scores: ScoresAt
    curves: Curves
    valid_time: float  # steps
    norm_growth: float  # of ||h|| a step, in closed loop
    examples: list[ExampleRollout]


def measure(model: Forecaster, data: EpisodeDataModule, rollout: RolloutOptions) -> Measurement:
    """Errors in closed and open loop, and of a model with a distribution how sure it is, and how rightly.

    Args:
        model: in evaluation mode.
        data: its test episodes are used, or the validation episodes if there are none.
        rollout: how far, from where and on how many episodes.
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
    return Measurement(
        errors={
            "closed": {
                horizon: closed.window(before, horizon)
                for before, horizon in zip([0, *horizons], horizons, strict=False)
                if horizon <= len(closed.nmse)
            },
            "open": {horizon: float(opened.nmse[horizon - 1]) for horizon in horizons if horizon <= len(opened.nmse)},
        },
        scores={} if getattr(model, "noise", None) is None else _scores(cast(Model, model), data, whole, rollout),
        curves=curves,
        valid_time=opened.valid_time,
        norm_growth=closed.norm_growth(),
        examples=[_example(example) for example in opened.examples],
    )


def _scores(model: Model, data: EpisodeDataModule, whole: Episodes, rollout: RolloutOptions) -> ScoresAt:
    found = scored(model, whole, data.steps, rollout)
    floor = Floor()(data.test_source, whole, data.steps, found)
    return summary(found, model, floor).at(multiple * data.steps for multiple in rollout.multiples)


def references(data: EpisodeDataModule, rollout: RolloutOptions) -> list[Reference]:
    """Predictors without training: copy-last, mean, linear autoregression; for a known system, the Kalman filter."""
    train = data.splits["train"]
    models: dict[str, tuple[str, Forecaster]] = {
        "copy_last": ("copy last", CopyLast()),
        "mean": ("mean", Mean(train)),
    }
    if (regression := linear_baseline(train, data.steps)) is not None:
        models["autoregression"] = (f"linear autoregression of order {regression.lags}, least squares", regression)
    if (system := known_system(data.test_source)) is not None:
        models["kalman"] = ("Kalman filter, the floor", KalmanFilter(system))
    measured = []
    for name, (title, model) in models.items():
        measurement = measure(model, data, rollout)
        curves: Curves = {  # a baseline's state is bookkeeping: its norm means nothing
            loop: replace(curve, hidden_norm=np.full_like(curve.nmse, np.nan))
            for loop, curve in measurement.curves.items()
        }
        measured.append(Reference(name, title, measurement.errors, curves))
    return measured


def _curve(nmse: np.ndarray, hidden_norm: np.ndarray, count: np.ndarray) -> Curve:
    return Curve(np.arange(1, len(nmse) + 1), nmse, hidden_norm, count)


def _example(example: Example) -> ExampleRollout:
    size = min(MOST_ENTRIES, example.layout.vector_dim)
    names = example.layout.vector_entries[:size]
    return ExampleRollout(example.name, example.truth[:, :size], example.prediction[:, :size], names)


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    hidden_dim: int
    parameters: int  # trainable
    recurrence_parameters: int  # of them, in the recurrent cell
    flops: int  # of one step of the cell and its head, one lane


def size_of(arguments: Mapping[str, Any]) -> Size:
    """The size of `WorldModel(**arguments)`, which is built on torch's meta device, without memory."""
    with torch.device("meta"):
        model = WorldModel(**{name: value for name, value in arguments.items() if not name.startswith("_")})
        predictor, hp = model.predictor, model.hparams
        z, h, a = (
            torch.zeros(predictor.members, dim) for dim in (hp["latent_dim"], predictor.state_dim, hp["action_dim"])
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            predictor(z, h, a)
    return Size(
        hp["hidden_dim"],
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(p.numel() for p in predictor.cell.parameters()),
        counter.get_total_flops(),
    )
