"""Callbacks, as users write them, most of which end a fit."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class StopAt(pl.Callback):
    """Asks for the end after a training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


class StopInValidation(pl.Callback):
    """Asks for it in the validation that follows the step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_end(self, trainer: Any, *arguments: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


class FailAt(pl.Callback):
    """Fails after a training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("as planned")


class DieInValidation(pl.Callback):
    """Sends the process a signal in the validation that follows the step."""

    def __init__(self, step: int, name: str = "SIGKILL") -> None:
        self.step, self.number = step, signal.Signals[name]

    def on_validation_epoch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Rename(pl.Callback):
    """Renames the run's folder after a training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            Path(trainer.log_dir).rename("renamed")


class Calls(pl.Callback):
    """Calls a function, which no YAML can hold."""

    def __init__(self, function: Callable[[], None] = lambda: None) -> None:
        self.function = function

    def on_train_start(self, *arguments: Any) -> None:
        self.function()
