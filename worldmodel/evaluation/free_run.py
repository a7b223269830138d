"""The free run, or simulation: a model sees an episode's first frames, then its actions alone up to its end."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worldmodel.data.episodes import Episodes, Layout
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.evaluation.rollouts import Example, Forecaster, Kept, Ruler, Start, append_rows, open_loop_chunks


@dataclass(frozen=True)
class FreeRun:
    """The errors of free runs. An entry is one of the vector, or an image, whose pixels are averaged."""

    seen: int  # frames before each run
    names: list[str]  # (E,) of the episodes
    entries: list[str]  # (N,)
    steps: np.ndarray  # (E,) predicted frames
    mse: np.ndarray  # (E, N) in the data's units; infinite where a prediction was not finite
    nmse: np.ndarray  # (E,) divided by the reference's variance, as Ruler does
    examples: list[Example]

    @property
    def rmse_of_entries(self) -> np.ndarray:
        """(N,) root mean squared error over all predicted frames."""
        return np.sqrt(np.average(self.mse, axis=0, weights=self.steps))

    @property
    def rmse(self) -> np.ndarray:
        """(E,) of each episode, a mean over the entries."""
        return np.sqrt(self.mse).mean(axis=1)

    def metrics(self) -> dict[str, float]:
        """Over all predicted frames, as they are logged; the RMSE is a mean over the entries."""
        rmse = float(self.rmse_of_entries.mean())
        return {"free_run/nmse": float(np.average(self.nmse, weights=self.steps)), "free_run/rmse": rmse}

    def append_csv(self, path: Path) -> None:
        """Append rows of horizon, metric, value to a rollout.csv, or write it; the horizon is the longest run's."""
        values = self.metrics()
        if len(self.entries) > 1:
            names = (f"free_run/rmse {name}" for name in self.entries)
            values |= dict(zip(names, self.rmse_of_entries.tolist(), strict=True))
        append_rows(path, ((int(self.steps.max()), name, value) for name, value in values.items()))

    def write_csv(self, path: Path) -> None:
        """Write rows of episode, steps, entry, rmse, nmse; the last is of all entries of the episode together."""
        with whole_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["episode", "steps", "entry", "rmse", "nmse"])
            for name, steps, mse, nmse in zip(self.names, self.steps, self.mse, self.nmse, strict=True):
                rows = zip(self.entries, np.sqrt(mse).tolist(), strict=True)
                writer.writerows((name, int(steps), entry, rmse, float(nmse)) for entry, rmse in rows)


def long_enough(episodes: Episodes, seen: int, option: str) -> Episodes:
    """The episodes that have a frame after the first `seen`.

    Raises:
        UserError: if there is none; `option` is the one that set `seen`.
    """
    chosen = np.flatnonzero(episodes.num_frames > seen)
    if not len(chosen):
        raise UserError(
            f"{option} {seen}: the longest episode has {int(episodes.num_frames.max())} frames, and a free run"
            f" predicts those after the first {seen}; let the model see fewer"
        )
    return episodes if len(chosen) == len(episodes) else episodes.select(chosen)


@torch.no_grad()
def free_run(
    model: Forecaster, episodes: Episodes, steps: int, seen: int, reference: Episodes | None = None, examples: int = 0
) -> FreeRun:
    """Let a model see the first frames of episodes, and predict the others from actions alone.

    Memory does not grow with the episodes' lengths, but for the examples.

    Args:
        model: in evaluation mode.
        episodes: at least one, each longer than `seen` frames.
        steps: computed at once.
        seen: frames that the model sees, at least 1.
        reference: whose variance the normalised errors are divided by; None: the episodes'.
        examples: runs that are kept for a picture, the first ones.
    """
    ruler = Ruler(episodes if reference is None else reference)
    starts = [Start(i, seen - 1, int(frames) - seen) for i, frames in enumerate(episodes.num_frames)]
    lengths = np.array([start.length for start in starts])
    names, firsts = _entries(episodes.layout)
    squared, normalised = np.zeros((len(starts), len(names))), np.zeros(len(starts))
    kept = Kept(list(range(min(examples, len(starts)))))
    for chunk in open_loop_chunks(model, episodes, starts, steps):
        within = chunk.ahead < lengths[chunk.rollouts, None]
        with np.errstate(over="ignore", invalid="ignore"):  # a state that explodes is a result, not a fault
            errors = np.square(chunk.prediction - chunk.truth, dtype=np.float64)
        errors = np.nan_to_num(_pooled(errors, firsts), nan=np.inf, posinf=np.inf)
        squared[chunk.rollouts] += np.where(within[..., None], errors, 0).sum(axis=1)
        normalised[chunk.rollouts] += np.where(within, ruler.error(chunk.prediction, chunk.truth), 0).sum(axis=1)
        kept.add(chunk)
    mse, nmse = squared / lengths[:, None], normalised / lengths
    return FreeRun(seen, list(episodes.names), names, lengths, mse, nmse, kept.examples(episodes, starts))


def _entries(layout: Layout) -> tuple[list[str], np.ndarray]:
    """Names of the vector's entries and of the images, and the column where each begins."""
    names = [*layout.vector_entries, *layout.images]
    sizes = [1] * layout.vector_dim + [h * w * c for h, w, c in layout.images.values()]
    return names, np.cumsum([0, *sizes[:-1]])


def _pooled(errors: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """(..., O) -> (..., N): the mean over the columns of each entry."""
    sizes = np.diff([*firsts, errors.shape[-1]])
    return np.add.reduceat(errors, firsts, axis=-1) / sizes
