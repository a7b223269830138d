"""The linear autoregression as a baseline of every evaluation: on a bounded number of rows, and measured once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.baselines import AutoRegression
from worldmodel.evaluation.curves import HorizonCurves, horizon_curves
from worldmodel.evaluation.rollouts import Forecaster
from worldmodel.evaluation.selection import RolloutOptions

WIDEST = 1024  # entries of an observation and an action
ENTRIES = 1 << 26  # of the regression's inputs, rows times width: at least 64 rows a weight, and seconds to fit


def linear_baseline(train: Episodes, steps: int) -> AutoRegression | None:
    """A linear autoregression of up to T = `steps` lags, whose number is chosen on held-out episodes.

    Where the episodes hold more rows than ENTRIES allows, it is fitted to some that are spread evenly over them.

    Returns None where none can be fitted: for images, frames of more than 1024 entries, or no transition.
    """
    frame = train.layout.vector_dim + train.layout.action_dim
    if train.layout.images or frame > WIDEST or not train.num_transitions:
        return None
    return AutoRegression.fit(_some(train, ENTRIES // min(frame * steps, WIDEST)), None, steps)


def _some(episodes: Episodes, rows: int) -> Episodes:
    """Episodes with about so many transitions, or all if they have no more."""
    if episodes.num_transitions <= rows:
        return episodes
    number = max(1, round(len(episodes) * rows / episodes.num_transitions))
    some = episodes.select(np.linspace(0, len(episodes) - 1, number).astype(int))
    if some.num_transitions > 2 * rows:  # few long ones
        some = replace(some, num_frames=np.minimum(some.num_frames, rows // number + 1))
    return some


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
