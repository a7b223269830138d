"""The Trainer of a run."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from worldmodel.errors import UserError, within
from worldmodel.experiments.callbacks import leave_out_idle_hooks

MOST_COUNT = 2**53  # of steps, epochs, batches
MOST_RANKS = 16  # for each core


class FitTrainer(Trainer):
    """Lightning's Trainer, which remembers what asked for a fit's end: `should_stop` may be set by anything."""

    stopped_by = ""  # in words; empty: nothing did
    _stops = False

    @property
    def should_stop(self) -> bool:
        """Whether training ends after this step."""
        return self._stops

    @should_stop.setter
    def should_stop(self, stops: bool) -> None:
        if stops and not self.stopped_by:
            self.stopped_by = _in_words(sys._getframe(1))
        self._stops = stops


def _in_words(frame: FrameType) -> str:
    """What ends a fit by the code in this frame; empty if that is this program's own, which says it elsewhere."""
    code, own = frame.f_code, frame.f_locals.get("self")
    if isinstance(own, Timer):
        return f"its time is used up (trainer.max_time, {type(own).__name__})"
    if str(frame.f_globals.get("__name__")).startswith("worldmodel."):
        return ""
    name = code.co_name if own is None else type(own).__name__
    return f"{name} asked for it ({Path(code.co_filename).name}, line {frame.f_lineno})"


def make_trainer(trainer_class: Callable[..., Trainer], options: Mapping[str, Any]) -> Trainer:
    """A Trainer with these options, which leaves signals to the program.

    Raises:
        UserError: if it refuses its options, or would start more processes than the machine can take.
    """
    try:
        trainer: Any = trainer_class(**options)
    except (ValueError, TypeError, OverflowError, ImportError, MisconfigurationException) as error:
        raise UserError(f"the Trainer refuses its options: {error}") from error
    if trainer.num_devices > MOST_RANKS * (os.cpu_count() or 1):  # each would be a process
        raise UserError(
            f"trainer.devices {trainer.num_devices} would start as many processes here, where there are"
            f" {os.cpu_count()} cores: choose fewer"
        )
    leave_out_idle_hooks(trainer.callbacks)
    # Lightning would take SIGTERM, ask for it after a batch alone, or never, and end with status 0
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def check_trainer(trainer_class: Callable[..., Trainer], options: Mapping[str, Any]) -> None:
    """Raise UserError if a Trainer would refuse these options, as far as they are plain values."""
    plain = {name: value for name, value in options.items() if isinstance(value, str | int | float | None)}
    for name, value in plain.items():  # what it would divide by, or could not count to
        if name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches") and value == 0:
            never = "" if name.startswith("acc") else "; --trainer.limit_val_batches 0 leaves validations out"
            raise UserError(f"trainer.{name} is 0: it must be above 0{never}")
        if isinstance(value, int):
            within(-MOST_COUNT, MOST_COUNT, "trainer.", **{name: value})
    make_trainer(trainer_class, {**plain, "logger": False, "enable_checkpointing": False})
