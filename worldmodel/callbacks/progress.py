"""How far a fit is: loss, steps a second and the time left."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from worldmodel.runs.display import Display

SHOWN = {"train/loss": "loss", "val/loss": "val loss"}


class FitProgress(ProgressBar):
    """Shows the progress of the whole fit, on the first rank.

    Args:
        shown: metrics, and the words for them.
        done: returns how far the fit is and how far it goes; None: count optimizer steps.
    """

    def __init__(self, shown: Mapping[str, str] = SHOWN, done: Callable[[], tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.shown, self.done = shown, done
        self._enabled = True
        self._display: Display | None = None
        self._open = ExitStack()

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        planned = trainer.estimated_stepping_batches
        step, total = trainer.global_step, int(planned) if math.isfinite(planned) else None
        if self.done is not None:
            step, total = self.done()
        self._display = self._open.enter_context(Display("training", total, step, more=lambda: self._metrics(trainer)))
        if not self._display.is_bar:
            self._display.print(f"training: {total or 'no fixed number of'} steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._display is not None:
            self._display.update(self._step(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._display is not None:
            self._display.update(self._step(trainer), now=True)
            self._open.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._open.close()

    def _step(self, trainer: pl.Trainer) -> int:
        return trainer.global_step if self.done is None else self.done()[0]

    def _metrics(self, trainer: pl.Trainer) -> str:
        known = trainer.callback_metrics
        return "  ".join(f"{label} {float(known[name]):.4g}" for name, label in self.shown.items() if name in known)
