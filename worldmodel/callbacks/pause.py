"""Ends a fit at a step, from where it can go on."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from worldmodel.callbacks.metrics import logged


class Pause(pl.Callback):
    """Ends a fit at a step of its schedule, and hands over a metric of the last validation.

    The learning rate is that of the whole fit, and a resumed one goes on as if it had not ended. A pause that is due on
    an epoch's last step, or before a validation, waits for the next step, as LastCheckpoint does.

    Must be after FinalValidation, and before LastCheckpoint: a checkpoint of the end is saved once the metric has been
    handed over, so that a fit that dies before goes on to the pause again.

    Args:
        steps: optimizer steps.
        metric: that a validation logs.
        record: takes it, at the end; NaN if it is not finite.
    """

    def __init__(self, steps: int, metric: str, record: Callable[[float], None]) -> None:
        self.steps, self.metric, self.record = steps, metric, record

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.steps <= trainer.global_step < trainer.estimated_stepping_batches:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = float(logged(trainer, self.metric))
        if trainer.is_global_zero:
            self.record(value if math.isfinite(value) else math.nan)
