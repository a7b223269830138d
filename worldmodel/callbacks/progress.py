"""How far the fit is: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SHOWN = {"train/loss": "loss", "val/loss": "val loss"}


class FitProgress(ProgressBar):
    """Loss, steps a second and the time left of the whole fit.

    Args:
        refresh_seconds: how often the bar changes.
        line_seconds: how often there is a line where the output is no terminal.
        shown: metrics, and the words for them.
        done: how far the fit is, and how far it goes; None: in optimizer steps.
    """

    def __init__(
        self,
        refresh_seconds: float = 0.2,
        line_seconds: float = 10.0,
        shown: Mapping[str, str] = SHOWN,
        done: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.shown, self.done = shown, done
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self._enabled = True
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total: int | None = None
        self._first_step = 0
        self._begin = self._shown = 0.0

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._first_step, self._total = self._where(trainer)
        self._begin = self._shown = time.monotonic()
        if sys.stdout.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
            )
            # Rich would otherwise take over stderr and stdout, also for warnings of other processes
            self._progress = Progress(*columns, console=Console(), refresh_per_second=1 / self.refresh_seconds)
            begun: dict[str, Any] = {"completed": self._first_step, "total": self._total}
            self._task = self._progress.add_task("fit", speed="", metrics="", **begun)
            self._progress.start()
        else:
            print(f"training: {self._total or 'no fixed number of'} steps", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        wait = self.refresh_seconds if self._progress else self.line_seconds
        if self._enabled and now - self._shown >= wait:
            self._shown = now
            self._show(trainer, now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled:
            self._show(trainer, time.monotonic())
            self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _where(self, trainer: pl.Trainer) -> tuple[int, int | None]:
        if self.done is not None:
            return self.done()
        planned = trainer.estimated_stepping_batches
        return trainer.global_step, int(planned) if math.isfinite(planned) else None

    def _show(self, trainer: pl.Trainer, now: float) -> None:
        step, _ = self._where(trainer)
        speed = (step - self._first_step) / max(1e-9, now - self._begin)
        known = trainer.callback_metrics
        metrics = "  ".join(f"{label} {float(known[name]):.4g}" for name, label in self.shown.items() if name in known)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, speed=f"{speed:.1f} steps/s", metrics=metrics)
            return
        left = f", {_clock((self._total - step) / speed)} left" if self._total and speed else ""
        share = f"/{self._total} ({100 * step // self._total}%)" if self._total else ""
        print(f"step {step}{share}  {metrics}  {speed:.1f} steps/s{left}", flush=True)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
