"""How much of the state is a clock."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.ridge import explained, held_out, narrowed
from worldmodel.evaluation.diagnosis.stretch import Trajectory

WIDEST = 32  # observation entries; images are projected


@dataclass(frozen=True)
class Clock:
    """R^2 of the step's number in its episode, on held-out lanes."""

    state: float  # from h
    read: float  # from read(h), what heads see: a count that nobody reads does no harm
    observation: float  # from the observation and action of the step, and their squares: what the data itself tells

    @property
    def excess(self) -> float:
        """What heads are told of time beyond what can be seen."""
        return min(self.state, self.read) - max(self.observation, 0.0)


def clock(trajectory: Trajectory, stretch: Batch) -> Clock | None:
    """None with one lane, too few steps, or steps that are all the same."""
    where, time, half = _times(trajectory.h, trajectory.step, trajectory.valid)
    obs = narrowed(stretch["obs"][:, :-1].flatten(0, 1).numpy()[where], WIDEST)
    seen = np.concatenate([obs, stretch["action"].flatten(0, 1).numpy()[where]], axis=1)
    states = trajectory.h, trajectory.predictor.cell.read(trajectory.h).detach()
    inputs = [values.flatten(0, 1).numpy()[where] for values in states]
    inputs.append(np.concatenate([seen, np.square(seen)], axis=1))
    predictions = [held_out(values, time, half) for values in inputs]
    if any(values is None for values in predictions) or np.ptp(time) == 0:
        return None
    return Clock(*(explained(values, time) for values in predictions if values is not None))


def clock_share(h: Tensor, step: Tensor, valid: Tensor) -> float | None:
    """R^2 of the step's number (B, T) from states h (B, T, D) at valid steps (B, T), on held-out lanes."""
    where, time, half = _times(h, step, valid)
    predictions = held_out(h.flatten(0, 1).double().cpu().numpy()[where], time, half)
    return None if predictions is None else explained(predictions, time)


def _times(h: Tensor, step: Tensor, valid: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the B T steps count, and of those the step's number (N, 1) and whether the lane is in the first half."""
    lanes, steps = valid.shape
    where = (valid & h.isfinite().all(dim=-1)).flatten().cpu().numpy()
    time = step.flatten().cpu().numpy()[where, None].astype(np.float64)
    return where, time, np.repeat(np.arange(lanes) % 2 == 0, steps)[where]
