"""How much of the state is a clock."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from worldmodel.evaluation.diagnosis.measurement import Finding, Measurement, Subject
from worldmodel.regression import explained, held_out, narrowed

WIDEST = 32  # observation entries; wider ones, such as images, are projected
IS_CLOCK = 0.9  # R^2 of time
MORE_CLOCK = 0.3  # beyond what is seen; a state that tracks what is seen knows as much of time as that


@dataclass(frozen=True)
class Clock(Measurement):
    """R^2 of the step's number in its episode, on held-out lanes."""

    state: float  # from h
    read: float  # from read(h), what heads see: a count that nobody reads does no harm
    observation: float  # from the observation and action of the step, and their squares: what the data alone gives

    key = "clock"
    labels = ("clock: R² of the step's number",)

    @classmethod
    def measure(cls, subject: Subject) -> "Clock | None":
        """None with one lane, too few steps, or steps that are all the same."""
        trajectory, stretch = subject.trajectory, subject.stretch
        where = (trajectory.valid & trajectory.h.isfinite().all(dim=-1)).numpy()
        time = trajectory.step.numpy()[where][:, None].astype(np.float64)
        half = np.nonzero(where)[0] % 2 == 0  # of the lanes
        seen = [narrowed(stretch["obs"][:, :-1].numpy()[where], WIDEST), stretch["action"].numpy()[where]]
        seen = np.concatenate(seen, axis=1)
        states = trajectory.h, trajectory.predictor.cell.read(trajectory.h).detach()
        inputs = *(values.numpy()[where] for values in states), np.concatenate([seen, np.square(seen)], axis=1)
        predictions = [held_out(values, time, half) for values in inputs]
        if any(values is None for values in predictions) or np.ptp(time) == 0:
            return None
        return cls(*(explained(values, time) for values in predictions if values is not None))

    @property
    def excess(self) -> float:
        """What the heads know of time beyond what can be seen."""
        return min(self.state, self.read) - max(self.observation, 0.0)

    def values(self, subject: Subject) -> tuple[str]:
        return (f"{self.state:.2f} from h, {self.observation:.2f} from the observation",)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if min(self.state, self.read) > IS_CLOCK and self.excess > MORE_CLOCK:
            yield Finding(
                "clock",
                50,
                f"h gives the step in its episode with R^2 = {self.state:.2f}, the observation with"
                f" {max(self.observation, 0):.2f}",
                "the state counts steps: what it learns of a step does not hold at others, nor beyond the longest"
                " episode",
                "episodes of mixed lengths (data.collect.min_episode_steps), --model.rule gated_norm",
            )
