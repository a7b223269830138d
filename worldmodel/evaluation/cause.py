"""Why a training fell short, as far as its losses show."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

USUAL_RATE = 1e-3
LARGE_RATE = 0.1  # AdamW moves every weight by up to its rate in a step, and weights start at about 0.1
SKIPPED = 0.01  # of all steps: updates that were not finite
ROSE = 1.5  # the last losses over the first
PEAK = 5.0  # the highest loss over the first: single batches vary
OVERFITTED = 2.0  # val/loss over the last train/loss
FALLING = 0.8  # the last losses over those before them
UNMOVED = 0.9  # the last losses over the first
FEWEST = 20  # steps: a rise in fewer is the difference between two batches
AS_THE_LINE = 0.9  # the one-step error over that of the line which the model corrects


@dataclass(frozen=True)
class Course:
    """The losses of a training, as metrics.csv has them; those of the point, where a distribution is predicted."""

    steps: int
    losses: list[float]  # train/loss from the first step on; where only that was logged, the last val/loss follows
    val_losses: list[float]
    skipped: int  # updates that were not finite
    one_step: float | None = None  # the last val/loss_prediction

    @property
    def positive(self) -> bool:
        """Whether losses may be divided: a log-likelihood may not."""
        return all(loss > 0 or math.isnan(loss) for loss in self.losses)

    @property
    def late(self) -> float:
        """The mean of the last quarter of the losses."""
        return fmean(self.losses[-self._quarter :])

    @property
    def before(self) -> float:
        """The mean of the quarter before."""
        return fmean(self.losses[-2 * self._quarter : -self._quarter])

    @property
    def _quarter(self) -> int:
        return max(1, len(self.losses) // 4)


@dataclass(frozen=True)
class Cause:
    """What went wrong, what shows it, and what to change."""

    what: str
    seen: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: {self.seen}; try {self.change}"


def read_course(folder: Path) -> Course | None:
    """The course of the run in this folder; None if its metrics.csv has no training loss."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    one_step, loss = column("val/loss_prediction"), "loss_prediction" if column("val/nll") else "loss"
    losses, val_losses = column(f"train/{loss}"), column(f"val/{loss}")  # a likelihood may not be divided
    if not losses:
        return None
    steps, skipped = (int(max(column(name), default=0)) for name in ("step", "guard/skipped"))
    known = losses + (val_losses[-1:] if len(losses) == 1 else [])
    return Course(steps, known, val_losses, skipped, one_step[-1] if one_step else None)


def likely_cause(course: Course, learning_rate: float, corrects: bool) -> Cause | None:
    """The likely cause of a model that is no better than a baseline; None if its losses show none.

    Each is a plain sign, the surest first: updates that are not finite, a loss that rose, steps as large as the
    weights, a line that leaves nothing to correct (`corrects`: whether the model corrects one), a validation loss far
    above the training loss, a loss that still falls, a loss that never fell.
    """
    if (cause := _too_high(course, learning_rate, corrects)) is not None or not course.positive:
        return cause
    if corrects and course.one_step is not None and course.one_step > AS_THE_LINE:
        seen = f"one step ahead the rule leaves {course.one_step:.2g} of the squared error of the line that it corrects"
        return Cause("a line may be enough", seen, "a longer training, or the line alone (worldmodel compare has it)")
    return _too_little(course)


def _too_high(course: Course, rate: float, corrects: bool) -> Cause | None:
    # in units of a line's error a batch with an episode's first frames may have any loss: a peak says nothing there
    peak = math.inf if corrects else PEAK
    first, late, highest = course.losses[0], course.late, max(course.losses, key=_height)
    seen = ""
    if course.skipped > SKIPPED * course.steps:
        seen = f"{course.skipped} of {course.steps} updates were not finite"
    elif course.steps >= FEWEST and course.positive and not (highest <= peak * first and late <= ROSE * first):
        seen = f"the training loss rose from {first:.3g} to {highest:.3g}, and ended at {late:.3g}"
    elif rate >= LARGE_RATE:
        seen = "a step may move every weight by as much, which is more than most of them start with"
    lower = f"--model.learning_rate {min(USUAL_RATE, rate / 10):.2g}"
    return Cause(f"the learning rate is too high ({rate:g})", seen, lower) if seen else None


def _too_little(course: Course) -> Cause | None:
    first, late = course.losses[0], course.late
    longer = "a higher --trainer.max_epochs or --trainer.max_steps"
    if course.val_losses and course.val_losses[-1] > OVERFITTED * late:
        seen = f"the loss is {course.val_losses[-1]:.3g} on validation episodes, {late:.3g} on those it was trained on"
        return Cause("too little data for a model of this size", seen, "more episodes, or a smaller --model.hidden_dim")
    if len(course.losses) > 1 and late < FALLING * course.before:
        seen = f"the training loss still fell at the end, from {course.before:.3g} to {late:.3g}"
        return Cause("too few steps", seen, longer)
    if len(course.losses) > 1 and late > UNMOVED * first:
        seen = f"the training loss has hardly fallen, from {first:.3g} to {late:.3g}"
        return Cause("too few steps, or too low a learning rate", seen, f"{longer}, or a higher --model.learning_rate")
    return None


def _height(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
