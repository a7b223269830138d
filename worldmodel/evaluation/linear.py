"""The linear autoregression as a baseline of every evaluation, measured once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.arx import WIDEST
from worldmodel.evaluation.baselines import AutoRegression
from worldmodel.evaluation.curves import HorizonCurves, horizon_curves
from worldmodel.evaluation.rollouts import Forecaster
from worldmodel.evaluation.selection import RolloutOptions


def linear_baseline(train: Episodes, steps: int) -> AutoRegression | None:
    """A linear autoregression of up to T = `steps` lags, whose number is chosen on held-out episodes.

    Returns None where none can be fitted: for images, frames of more than 1024 entries, or no transition.
    """
    frame = train.layout.vector_dim + train.layout.action_dim
    if train.layout.images or frame > WIDEST or not train.num_transitions:
        return None
    return AutoRegression.fit(train, None, steps)


def evaluated(
    model: Forecaster,
    splits: Mapping[Any, Episodes],
    split: str,
    steps: int,
    options: RolloutOptions,
    linear: "LinearCurve",
) -> HorizonCurves:
    """Roll a model out on the first episodes of a split, beside a linear autoregression of the training split, if any.

    Args:
        model: in evaluation mode.
        splits: by their names.
        split: that is evaluated.
        steps: T, the trained horizon.
        options: how far, from where and on how many episodes.
        linear: keeps the baseline's errors for the next evaluation.
    """
    whole, train = splits[split], splits.get("train")
    curves = horizon_curves(model, options.first_episodes(whole), steps, options, whole)
    return curves if train is None else replace(curves, linear=linear(train, whole, steps, options))


class LinearCurve:
    """The linear autoregression's open-loop errors, measured again only for other episodes."""

    def __init__(self) -> None:
        self._known: tuple[Episodes, Episodes, np.ndarray | None] | None = None

    def __call__(self, train: Episodes, whole: Episodes, steps: int, options: RolloutOptions) -> np.ndarray | None:
        """Errors (H,), as `horizon_curves` gives them on the first episodes of a split; None: none can be fitted.

        Args:
            train: the episodes that it is fitted to.
            whole: the evaluated split.
            steps: T, the trained horizon.
            options: of the evaluation; the same in every call.
        """
        if self._known is None or self._known[0] is not train or self._known[1] is not whole:
            model, episodes = linear_baseline(train, steps), options.first_episodes(whole)
            errors = None if model is None else horizon_curves(model, episodes, steps, options, whole).nmse
            self._known = train, whole, errors
        return self._known[2]
