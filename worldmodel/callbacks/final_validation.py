"""Validates the last weights, wherever training stops."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl


class FinalValidation(pl.Callback):
    """Validates at the end of training, unless the last weights have been validated.

    The Trainer validates only after whole epochs, and of these only after every `check_val_every_n_epoch`-th. A fit
    that ends elsewhere (max_steps, max_time) would report numbers of older weights than those in last.ckpt.

    Must be before callbacks that evaluate at the end of training, such as RolloutEvaluation: they do so in this
    validation.

    Args:
        before: called first, at the end of training, with the Trainer; saves what a run goes on from that trains more,
            and would not have had this validation.
    """

    def __init__(self, before: Callable[[Any], None] | None = None) -> None:
        self.before = before
        self._validated_step: int | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated_step = trainer.global_step

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        if self.before is not None:
            self.before(trainer)
        if self._validated_step == trainer.global_step or not trainer.enable_validation or trainer.fast_dev_run:
            return
        with as_in_the_epoch(trainer.fit_loop):
            validate(trainer)


def validate(trainer: Any) -> None:
    """Validate during a fit, as the Trainer itself does."""
    trainer.validating = True
    first = trainer._logger_connector._first_loop_iter
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first


@contextmanager
def as_in_the_epoch(fit_loop: Any) -> Iterator[None]:
    """Undo that the Trainer counts an epoch that stopped half-way as complete: a fit resumed from a checkpoint that the
    validation saves would skip the rest of it."""
    progress = fit_loop.epoch_progress
    half = 0 if fit_loop.epoch_loop.batch_progress.is_last_batch else 1
    for count in (progress.current, progress.total):
        count.processed, count.completed = count.processed - half, count.completed - half
    try:
        yield
    finally:
        for count in (progress.current, progress.total):
            count.processed, count.completed = count.processed + half, count.completed + half
