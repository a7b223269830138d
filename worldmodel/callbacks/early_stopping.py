"""Ends a fit whose validations no longer improve."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import callbacks as lightning

from worldmodel.callbacks.metrics import logged
from worldmodel.errors import UserError, at_least
from worldmodel.runs.structure import check


@dataclass(frozen=True)
class StoppingOptions:
    """When a fit ends early.

    Args:
        patience: Validations without improvement after which the fit ends; null: it never ends early.
        min_delta: Least change that counts as an improvement.
        monitor: Metric that must improve; null: checkpoint_monitor.
        mode: Whether low or high values of monitor are good; null: by its name, or checkpoint_mode with its metric.
    """

    patience: int | None = None
    min_delta: float = 0.0
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None

    def __post_init__(self) -> None:
        at_least(1, "early_stopping.", patience=self.patience)
        at_least(0, "early_stopping.", min_delta=self.min_delta)
        if self.patience is None and self.monitor is not None:
            raise UserError(f"early_stopping.monitor is {self.monitor}: say with early_stopping.patience when to stop")


def used_up(callbacks: Iterable[Any], max_time: Any, checkpoint: dict[str, Any]) -> str | None:
    """A message if Lightning's own callbacks, among them that of trainer.max_time, had ended the checkpoint's fit."""
    timers = [] if max_time is None else [lightning.Timer(max_time)]
    for callback in [*timers, *callbacks]:
        if (state := checkpoint["callbacks"].get(callback.state_key)) is None:
            continue
        if isinstance(callback, lightning.Timer):
            callback.load_state_dict(state)
            if (left := callback.time_remaining()) is not None and left <= 0:
                return "the checkpoint's run is finished: its time, trainer.max_time, is used up; raise it to go on"
        elif isinstance(callback, lightning.EarlyStopping) and (
            state["stopped_epoch"] or state["wait_count"] >= state["patience"]
        ):
            return (
                "the checkpoint's run is finished: EarlyStopping among trainer.callbacks ended it; leave it out to go"
                " on. --early_stopping.patience does the same, and can be raised"
            )
    return None


class EarlyStopping(pl.Callback):
    """Stops after `patience` validations in a row in which a metric did not improve; one not finite is none.

    Unlike Lightning's, a resumed fit has the patience that it is given now, and knows whether it had ended.

    Args:
        monitor: the metric.
        mode: whether low or high values are good.
        patience: validations.
        min_delta: least change that counts.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], patience: int, min_delta: float = 0.0) -> None:
        self.monitor, self.mode, self.patience, self.min_delta = monitor, mode, patience, min_delta
        self.best = math.inf if mode == "min" else -math.inf
        self.best_step = self.waited = 0

    @property
    def state_key(self) -> str:
        """With another metric, a resumed fit starts to wait again."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check(state_dict, {"best": float, "best_step": int, "waited": int}, "EarlyStopping")
        self.best, self.best_step, self.waited = (state_dict[name] for name in ("best", "best_step", "waited"))

    def finished(self, checkpoint: dict[str, Any]) -> str | None:
        """A message if the checkpoint's fit has waited this long already, else None."""
        if (state := checkpoint["callbacks"].get(self.state_key)) is None:
            return None
        self.load_state_dict(state)
        if self.waited < self.patience:
            return None
        return (
            f"the checkpoint's run is finished: it stopped early, since {self._reason()};"
            " raise early_stopping.patience to go on"
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = float(logged(trainer, self.monitor))
        gain = self.best - value if self.mode == "min" else value - self.best
        if math.isfinite(value) and (gain > self.min_delta or not math.isfinite(self.best)):
            self.best, self.best_step, self.waited = value, trainer.global_step, 0
        else:
            self.waited += 1
        if trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.waited >= self.patience and trainer.is_global_zero:
            print(f"stopped early at step {trainer.global_step:,}: {self._reason()}", flush=True)

    def _reason(self) -> str:
        best = f"its best is {self.best:.4g} at step {self.best_step:,}" if math.isfinite(self.best) else "never finite"
        plural = "s" * (self.waited > 1)
        return f"{self.monitor} has not improved in {self.waited} validation{plural} ({best})"
