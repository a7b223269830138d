"""Logging: metrics.csv, which a resumed run continues, and what cannot wait for the Trainer's own logging."""

import csv
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from matplotlib.figure import Figure

from worldmodel.durable import whole_file
from worldmodel.errors import CannotWrite, UserError, nearest

LOGGED = "metrics_file"  # in a checkpoint: what metrics.csv held when it was saved


def log_at_once(trainer: Any, metrics: dict[str, float]) -> None:
    """Log to all loggers and callback_metrics now: `self.log` waits for log_every_n_steps, and drops what is left."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def row_step(trainer: Any) -> int:
    """The step that the Trainer gives to the row of a validation: that of the last training step, counted from 0."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def logged(trainer: Any, name: str) -> torch.Tensor:
    """The last value of a metric that best.ckpt is chosen by, or that early stopping watches.

    Raises:
        UserError: if nothing of this name was logged so far.
    """
    known = trainer.callback_metrics
    if name not in known:
        raise UserError(
            f"no metric {name!r} was logged up to the validation at step {trainer.global_step}, for checkpoint_monitor"
            f" or early_stopping.monitor: {nearest(name, known)} (logged: {', '.join(sorted(known))};"
            f" metrics of training, every trainer.log_every_n_steps {trainer.log_every_n_steps})"
        )
    return known[name]


def log_picture(trainer: Any, name: str, figure: Figure, path: Path) -> None:
    """Log a figure, and the PNG that it was saved as, to all loggers that take pictures."""
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)  # W&B
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)  # TensorBoard
        if callable(log_image):
            log_image(name, [str(path)], step=row_step(trainer))
        elif callable(add_figure):
            add_figure(name, figure, trainer.global_step)


class FirstLoss(Callback):
    """Logs `train/loss` of the first step, which later losses are held against: the next follows many steps later."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        first = trainer.current_epoch == batch_idx == 0 and trainer.global_step <= 1
        if first and trainer.log_every_n_steps > 1:
            loss = float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean"))  # on every rank
            for logger in trainer.loggers:  # not callback_metrics, which hold the latest
                logger.log_metrics({"train/loss": loss}, step=0)
        setattr(self, "on_train_batch_end", None)  # noqa: B010  the Trainer skips it from now on


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, except that a resumed run continues the file, and that the file is always whole.

    Args:
        folder: of the run.
        logged: what the file held when the checkpoint was saved: the number of `rows`, to which it is cut, and
            `pending`, the row of that step.
    """

    def __init__(self, folder: Path, logged: dict[str, Any] | None = None) -> None:
        super().__init__(folder, name="", version="")
        self._logged = logged or {"rows": 0, "pending": {}}

    @property
    def experiment(self) -> Any:
        """The writer; one that does nothing on ranks other than the first."""
        if self._experiment is None and _is_first():
            self._experiment = _Writer(self.log_dir, **self._logged)
        return super().experiment

    def keep(self) -> int:
        """Flush to disk everything logged so far; returns the number of rows."""
        self.save()
        return self.experiment.on_disk()


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, rows: int, pending: dict[str, Any]) -> None:
        super().__init__(log_dir)
        kept = self._read()[:rows]
        self._rows = len(kept)
        if kept:
            self.metrics_keys = sorted({name for row in kept for name, value in row.items() if value})
            self._write(kept)
        else:
            Path(self.metrics_file_path).unlink(missing_ok=True)
        if pending:
            self.metrics.append(pending)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """config.yaml has them."""

    def save(self) -> None:
        path, rows = Path(self.metrics_file_path), len(self.metrics)
        if not path.parent.is_dir() or (self._rows and not path.exists()):
            raise UserError(f"{path} is gone: was its folder removed or renamed while the run trained into it?")
        size = path.stat().st_size if path.exists() else 0
        try:
            super().save()
        except OSError as error:
            if path.exists():
                os.truncate(path, size)  # no half a row
            raise CannotWrite(error, path, size) from error
        self._rows += rows

    def on_disk(self) -> int:
        """Flush the file; returns its number of rows."""
        if self._rows:
            with Path(self.metrics_file_path).open("rb+") as file:
                os.fsync(file.fileno())
        return self._rows

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the file here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._read())

    def _read(self) -> list[dict[str, Any]]:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with whole_file(Path(self.metrics_file_path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def pending_row(trainer: Any) -> dict[str, Any]:
    """The row that the Trainer will log after this step's last hook, hence after a checkpoint of it; often empty."""
    connector = trainer._logger_connector
    if not connector.should_update_logs or not (metrics := connector.metrics["log"]):
        return {}
    row = {"epoch": trainer.current_epoch, **convert_tensors_to_scalars(metrics)}
    return {**row, "step": trainer.fit_loop.epoch_loop._batches_that_stepped}


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0
