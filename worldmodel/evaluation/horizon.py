"""Open-loop error against the horizon, beside the baselines that anyone can compute."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.rollouts import Example, Model, Ruler, Start, roll_out


@dataclass(frozen=True)
class HorizonCurves:
    """Errors H steps ahead, for H = 1 .. len(horizon), divided by the observations' variance: 1.0 predicts the mean."""

    horizon: np.ndarray  # (H,)
    nmse: np.ndarray  # (H,) the model, open loop
    copy_last: np.ndarray  # (H,) the last observation, kept
    mean: np.ndarray  # (H,) the mean observation
    hidden_norm: np.ndarray  # (H,) mean ||h||
    rollouts: np.ndarray  # (H,) how many are that long
    valid_time: float  # mean over rollouts of the first step with an error above the threshold
    threshold: float
    burn_in: int
    examples: list[Example]

    @property
    def crossing(self) -> int | None:
        """The first horizon at which the model's error passes the threshold; None: nowhere."""
        above = np.flatnonzero(~(self.nmse <= self.threshold))
        return int(self.horizon[above[0]]) if len(above) else None

    def write_csv(self, path: Path) -> None:
        """Rows of horizon, metric, value."""
        names = ("nmse", "copy_last", "mean", "hidden_norm", "rollouts")
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["horizon", "metric", "value"])
            for i, horizon in enumerate(self.horizon):
                writer.writerows((int(horizon), name, float(getattr(self, name)[i])) for name in names)


def horizon_curves(
    model: Model,
    episodes: Episodes,
    steps: int,
    multiples: tuple[int, ...] = (1, 2, 5, 10, 50),
    burn_in: int | None = None,
    starts: int = 8,
    threshold: float = 0.5,
    num_examples: int = 3,
    reference: Episodes | None = None,
) -> HorizonCurves:
    """Roll a model out on episodes, without observations, from several frames of each.

    The model sees an episode's frames up to a start, then only the actions. Memory grows with the number of rollouts
    times the longest horizon, not with the episodes' lengths.

    Args:
        model: in evaluation mode.
        episodes: at least one.
        steps: T, the trained horizon; rollouts are at most the largest multiple of it long.
        multiples: of T; the starts are spread so that as many rollouts as possible reach all but the largest.
        burn_in: frames that are seen before the first start; None: T, or less where episodes are short.
        starts: rollouts of an episode.
        threshold: of the normalised error, for the valid prediction time.
        num_examples: rollouts kept for a picture.
        reference: whose mean and variance the errors are held against; None: the episodes'.
    """
    burn_in = default_burn_in(episodes, steps) if burn_in is None else burn_in
    burn_in = min(burn_in, int(episodes.num_frames.max()) - 2)
    plan = [
        Start(episode, start, min(int(frames) - 1 - start, steps * max(multiples)))
        for episode, frames in enumerate(episodes.num_frames)
        for start in _starts(int(frames) - 1, burn_in, steps, multiples, starts)
    ]
    kept = _examples(plan, num_examples)
    return curves_from(model, episodes, plan, steps, burn_in, threshold, kept, reference)


@torch.no_grad()
def curves_from(
    model: Model,
    episodes: Episodes,
    plan: list[Start],
    steps: int,
    burn_in: int,
    threshold: float,
    kept: list[int],
    reference: Episodes | None = None,
) -> HorizonCurves:
    """As `horizon_curves`, from chosen starts.

    Args:
        model: in evaluation mode.
        episodes: that the plan speaks of.
        plan: the rollouts.
        steps: that are computed at once.
        burn_in: frames that are seen before the first start, for the record.
        threshold: of the normalised error, for the valid prediction time.
        kept: rollouts kept for a picture.
        reference: whose mean and variance the errors are held against; None: the episodes'.
    """
    ruler = Ruler(episodes if reference is None else reference)
    measured = roll_out(model, episodes, plan, steps, ruler, kept)
    lengths = np.array([start.length for start in plan])
    ahead = np.arange(1, lengths.max() + 1)
    valid = ahead <= lengths[:, None]
    above = (measured.nmse > threshold) & valid
    time = np.where(above.any(axis=1), above.argmax(axis=1) + 1, lengths)

    def curve(values: np.ndarray) -> np.ndarray:
        return np.where(valid, values, 0).sum(axis=0) / valid.sum(axis=0)

    return HorizonCurves(
        horizon=ahead,
        nmse=curve(measured.nmse),
        copy_last=curve(measured.copy_last),
        mean=curve(measured.mean),
        hidden_norm=curve(measured.hidden_norm),
        rollouts=valid.sum(axis=0),
        valid_time=float(time.mean()),
        threshold=threshold,
        burn_in=burn_in,
        examples=measured.examples,
    )


def default_burn_in(episodes: Episodes, steps: int) -> int:
    """T frames; a quarter of the longest episode, where that is less, but at least one."""
    return min(steps, max(1, (int(episodes.num_frames.max()) - 1) // 4))


def _starts(length: int, burn_in: int, steps: int, multiples: tuple[int, ...], number: int) -> list[int]:
    """Frames of an episode with `length` transitions after which rollouts begin."""
    if length <= burn_in:
        return []
    fits = [multiple * steps for multiple in sorted(multiples) if burn_in + multiple * steps <= length]
    reach = fits[-2] if len(fits) > 1 else fits[0] if fits else 1
    return sorted(set(np.linspace(burn_in, length - reach, number).astype(int).tolist())) if fits else [burn_in]


def _examples(plan: list[Start], number: int) -> list[int]:
    """The first rollout of the first few episodes that allow the longest ones."""
    firsts: dict[int, int] = {}
    for i, start in enumerate(plan):
        firsts.setdefault(start.episode, i)
    return sorted(firsts.values(), key=lambda i: -plan[i].length)[:number]
