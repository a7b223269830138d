"""Accuracy on a sequence task far past the trained length, after each validation."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from worldmodel.callbacks.metrics import log_last_weights
from worldmodel.callbacks.rollout import MULTIPLES
from worldmodel.errors import UserError
from worldmodel.evaluation.figures import recall_figure, save
from worldmodel.tasks.recall import RecallScores, recall


class RecallEvaluation(pl.Callback):
    """On data of a sequence task (envs.sequences), judges the model on fresh sequences of 1 to 50 times T steps.

    Asks the DataModule for `task` and `steps` (T); does nothing where there is no task, or where the objective is not
    tokens. Logs `recall/accuracy@L` for each length L, and for a counting task `recall/counts_to`; writes `recall.csv`
    and `recall.png` into the folder of the run.

    Args:
        multiples: of the segment length.
        sequences: of each length.
        limit: the largest n that a counting task is tried up to.
        seed: of the sequences.
    """

    def __init__(
        self, multiples: list[int] | None = None, sequences: int = 256, limit: int = 2000, seed: int = 1_000_000
    ) -> None:
        self.multiples = sorted(set(multiples or MULTIPLES))
        if self.multiples[0] < 1 or sequences < 1 or limit < 1:
            raise UserError("recall.multiples, recall.sequences and recall.limit must be at least 1")
        self.sequences, self.limit, self.seed = sequences, limit, seed
        self.recalled: RecallScores | None = None
        self._evaluated_step: int | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and _is_asked(trainer, pl_module):
            pl_module.log_dict(self._evaluate(trainer, pl_module))

    on_test_epoch_end = on_validation_epoch_end

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Evaluate the last weights, if no validation just did."""
        if self._evaluated_step == trainer.global_step or trainer.fast_dev_run or not _is_asked(trainer, pl_module):
            return
        log_last_weights(trainer, pl_module, lambda: self._evaluate(trainer, pl_module))

    def _evaluate(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        data = trainer.datamodule
        lengths = [multiple * data.steps for multiple in self.multiples]
        self.recalled = recall(pl_module, data.task, lengths, self.sequences, self.seed, self.limit)
        self._evaluated_step = trainer.global_step
        log_dir = trainer.log_dir  # a collective: on every rank
        if trainer.is_global_zero and log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "recall.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["length", "accuracy"])
                writer.writerows(zip(self.recalled.lengths, self.recalled.accuracy, strict=True))
            title = f"{data.env_id}, {pl_module.hparams.get('rule', type(pl_module).__name__)}"
            save(recall_figure(self.recalled, data.steps, title), folder / "recall.png")
        return recall_metrics(self.recalled)


def _is_asked(trainer: Any, pl_module: pl.LightningModule) -> bool:
    task = getattr(getattr(trainer, "datamodule", None), "task", None)
    return task is not None and pl_module.hparams.get("objective") == "tokens"


def recall_metrics(recalled: RecallScores) -> dict[str, float]:
    """What is logged."""
    pairs = zip(recalled.lengths, recalled.accuracy, strict=True)
    metrics = {f"recall/accuracy@{length}": accuracy for length, accuracy in pairs}
    return metrics | ({"recall/counts_to": float(recalled.counts_to)} if recalled.counts_to is not None else {})
