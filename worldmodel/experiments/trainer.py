"""The Trainer of a run."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from worldmodel.errors import UserError
from worldmodel.experiments.callbacks import leave_out_idle_hooks

MOST_RANKS = 16  # for each core


def make_trainer(trainer_class: Callable[..., Trainer], options: Mapping[str, Any]) -> Trainer:
    """A Trainer with these options, which leaves signals to the program.

    Raises:
        UserError: if it refuses its options, or would start more processes than the machine can take.
    """
    try:
        trainer: Any = trainer_class(**options)
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
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
    make_trainer(trainer_class, {**plain, "logger": False, "enable_checkpointing": False})
