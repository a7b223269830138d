"""One trial of a tuning, in a process of its own: a fit that goes on to a rung, and its score there.

python -m worldmodel.comparison.trial OUT SLUG NUMBER STEPS
"""

import math
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from worldmodel.arguments import fail
from worldmodel.callbacks.guard import Diverged
from worldmodel.callbacks.pause import Pause
from worldmodel.comparison.design import trial_command
from worldmodel.comparison.folder import DESIGN
from worldmodel.comparison.tuning import RECORD, Tuning, read_scores, trial_folder, write_score
from worldmodel.durable import read_json
from worldmodel.errors import UserError
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.runs.checkpoint import newest_whole, read_checkpoint
from worldmodel.runs.folder import is_first_rank


class TrialCLI(TrainingCLI):
    """`fit` that pauses at a rung, under the names of the comparison."""

    def __init__(self, words: list[str], names: tuple[str, str], pause: Pause) -> None:
        self._names, self._pause = names, pause
        super().__init__([*words, "--resume"])

    def names(self) -> tuple[str, str]:
        return self._names

    def fit(self, **kwargs: Any) -> None:
        """A trial that diverges has the worst score."""
        with suppress(Diverged):
            self.trainer.fit(**kwargs)

    def callbacks(self, **further: Any) -> list[pl.Callback]:
        self.config_init["fit"]["rollout"].wanted = not self._pause.metric.startswith("val/")
        return super().callbacks(pause=self._pause, **further)

    def after_fit(self) -> None:
        """The score is all that is reported."""


def main(argv: list[str]) -> None:
    """Train a trial of the comparison's design up to a rung."""
    out, slug, number, steps = Path(argv[0]), argv[1], int(argv[2]), int(argv[3])
    design = read_json(out / DESIGN)
    tuning, folder = Tuning.read(design["tuning"]), trial_folder(out, slug, number)
    command = trial_command(out, design, slug, number)
    variant = next(run["variant"] for run in design["runs"] if run["slug"] == slug)
    record = partial(write_score, folder, command, steps)
    with training_errors(command[1:]):
        if is_first_rank() and not _goes_on(folder, command, steps):
            shutil.rmtree(folder, ignore_errors=True)
        cli = TrialCLI(command[1:], (f"{slug}-t{number}", variant), Pause(steps, tuning.metric, record))
    if cli.trainer.is_global_zero and steps not in read_scores(folder, command):
        record(math.nan)  # it has diverged


def _goes_on(folder: Path, command: list[str], steps: int) -> bool:
    """Whether what the folder holds is this trial before the rung."""
    with suppress(UserError):
        begun = newest_whole(folder)
        if begun is None:
            return False
        reached = read_checkpoint(begun)["global_step"]
        return reached < steps and (bool(read_scores(folder, command)) or not (folder / RECORD).exists())
    return False


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
