"""The last weights are validated, wherever training stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl


class FinalValidation(pl.Callback):
    """Validates at the end of training, if no validation has seen the last weights.

    The Trainer validates behind whole epochs, and only behind those that `check_val_every_n_epoch` divides. A fit that
    ends elsewhere (max_steps, max_time) would report the numbers of older weights than it leaves in last.ckpt.

    Stands before what measures more at the end of training, such as RolloutEvaluation: that happens in the validation.
    """

    def __init__(self) -> None:
        self._validated_step: int | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated_step = trainer.global_step

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        if self._validated_step == trainer.global_step or not trainer.enable_validation or trainer.fast_dev_run:
            return
        with _as_in_the_epoch(trainer.fit_loop):
            validate(trainer)


def validate(trainer: Any) -> None:
    """In the midst of a fit, as the Trainer itself does it."""
    trainer.validating = True
    first = trainer._logger_connector._first_loop_iter
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first


@contextmanager
def _as_in_the_epoch(fit_loop: Any) -> Iterator[None]:
    """An epoch that stopped half-way already counts as complete: a checkpoint of the validation must not say so, or a
    fit that goes on from it would skip the rest."""
    progress = fit_loop.epoch_progress
    half = 0 if fit_loop.epoch_loop.batch_progress.is_last_batch else 1
    for count in (progress.current, progress.total):
        count.processed, count.completed = count.processed - half, count.completed - half
    try:
        yield
    finally:
        for count in (progress.current, progress.total):
            count.processed, count.completed = count.processed + half, count.completed + half
