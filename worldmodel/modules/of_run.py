"""What belongs to a run, in Python: its data, and open-loop predictions of chosen episodes by its model."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from worldmodel.data.episodes import Episodes
from worldmodel.errors import UserError, at_least
from worldmodel.evaluation.calibration import with_bands
from worldmodel.evaluation.curves import HorizonCurves, curves_from
from worldmodel.evaluation.linear import linear_baseline
from worldmodel.evaluation.rollouts import Start
from worldmodel.evaluation.selection import RolloutOptions, Selection, select_rollouts
from worldmodel.model import Model
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.runs.config import read_config

SplitName = Literal["train", "val", "test"]


def data_of(checkpoint: Path, trust: bool = False) -> EpisodeDataModule:
    """The data that a run was trained on, which is not collected where it is missing.

    Args:
        checkpoint: a file in the run's folder.
        trust: whether a reader of someone's own code that the run names may be run.

    Raises:
        UserError: if there is no configuration beside the checkpoint.
    """
    config = read_config(checkpoint, "give the data", trust)
    if config is None:
        raise UserError(f"{checkpoint} has no config.yaml of its run beside it: give the data")
    try:
        return EpisodeDataModule(**config["data"])
    except TypeError as error:
        raise UserError(f"the data options of the run's config.yaml are of another version: {error}") from error


def split_of(data: EpisodeDataModule, asked: SplitName | None) -> tuple[str, Episodes]:
    """The split that was asked for; None: the test's, or the validation's where there is no test."""
    split = asked or ("test" if len(data.splits["test"]) else "val")
    if not len(data.splits[split]):
        raise UserError(f"the {split} split is empty: choose --split val or train")
    return split, data.splits[split]


def open_loop(
    model: Model,
    episodes: Episodes,
    steps: int,
    trained_on: Episodes | None,
    samples: int,
    threshold: float = RolloutOptions.threshold,
    **chosen: Any,
) -> tuple[HorizonCurves, Selection]:
    """Roll a model out on chosen episodes, one rollout of each.

    Args:
        model: in evaluation mode.
        episodes: of a split, whose mean and variance the errors are held against.
        steps: T, the trained horizon.
        trained_on: what a linear autoregression is fitted to, for comparison; None: without it.
        samples: futures drawn of each rollout, of a model with a distribution.
        threshold: of the error, which ends the valid prediction time.
        chosen: see `select_rollouts`.
    """
    at_least(2, "--", samples=samples)
    selection = select_rollouts(episodes, steps, **chosen)
    starts = [Start(i, selection.burn_in, length) for i, length in enumerate(selection.lengths)]
    how = starts, steps, selection.burn_in, threshold, list(range(len(starts))), episodes
    curves = _named(curves_from(model, selection.episodes, *how), selection)
    if trained_on is not None and (line := linear_baseline(trained_on, steps)) is not None:
        curves = replace(curves, linear=curves_from(line, selection.episodes, *how).nmse)
    if model.noise is not None:
        curves = with_bands(model, selection.episodes, curves, steps, samples)
    return curves, selection


def _named(curves: HorizonCurves, selection: Selection) -> HorizonCurves:
    """Examples named by frames of the whole episode, of which the model may not have seen the first ones."""
    frame = selection.first + selection.burn_in
    names = [f"{name.split('/')[-1]}, from frame {frame}" for name in selection.episodes.names]
    return replace(curves, examples=[replace(e, name=n) for e, n in zip(curves.examples, names, strict=True)])
