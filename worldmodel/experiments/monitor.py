"""Which metric chooses best.ckpt and ends a fit early: its name, checked before any data is touched, and its mode."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from worldmodel.callbacks.early_stopping import EarlyStopping, StoppingOptions
from worldmodel.errors import UserError, choose
from worldmodel.evaluation.calibration import LOW_IS_GOOD, SHARES
from worldmodel.modules.world_model import WorldModel, logged_as

HIGH = ("return", "accuracy", "success", "counts_to", "valid_prediction_time")  # of metrics that are good when high
DURING_TRAINING = ("train/", "hidden/", "guard/")  # logged now and then, perhaps not before the first validation


def mode_of(monitor: str, mode: Literal["min", "max"] | None) -> Literal["min", "max"]:
    """Whether low or high values of a metric are good: as given, or by its name."""
    return mode or ("max" if any(word in monitor for word in HIGH) else "min")


def best_by(config: Mapping[str, Any]) -> tuple[str, Literal["min", "max"]]:
    """The metric that chooses best.ckpt, and its mode."""
    monitor = config["checkpoint_monitor"]
    return monitor, mode_of(monitor, config["checkpoint_mode"])


def early_stopping(config: Mapping[str, Any]) -> EarlyStopping | None:
    """The callback that the options ask for, if any."""
    options: StoppingOptions = config["early_stopping"]
    if options.patience is None:
        return None
    monitor, mode = best_by(config)
    if options.monitor not in (None, monitor):
        monitor, mode = str(options.monitor), None
    return EarlyStopping(monitor, mode_of(monitor, options.mode or mode), options.patience, options.min_delta)


def check_monitors(config: Mapping[str, Any], model: WorldModel) -> None:
    """Check the names of the metrics of a world model's fit, as far as the options tell what will be logged.

    A callback of the user's may log anything. What these checks cannot know, the first validation shows.

    Args:
        config: of the fit, not instantiated.
        model: of its arguments.

    Raises:
        UserError: for a metric that is never logged.
    """
    stopping = config["early_stopping"]
    if stopping["patience"] is not None and config["trainer"]["limit_val_batches"] == 0:
        raise UserError("early_stopping.patience counts validations, and trainer.limit_val_batches 0 leaves them out")
    for option, name in (
        ("checkpoint_monitor", config["checkpoint_monitor"]),
        ("early_stopping.monitor", stopping["monitor"]),
    ):
        if name is None or name.startswith(DURING_TRAINING) or config["trainer"]["callbacks"]:
            continue
        if name.startswith("free_run/") and config["rollout"]["free_run"] is None:
            raise UserError(f"{option} is {name}, which --rollout.free_run N logs: a free run after N seen frames")
        if name.startswith(tuple(f"rollout/{share}@" for share in SHARES)):
            raise UserError(f"{option} is {name}, which is best at 0.9, neither low nor high: take rollout/crps@H")
        choose(f"{option} metric", name, _logged(config, model))


def _logged(config: Mapping[str, Any], model: WorldModel) -> Iterable[str]:
    """What every validation logs."""
    steps = config["data"]["steps"]
    for name in model.val_means:
        yield logged_as("val", name)
    if model.hparams["objective"] == "tokens":
        yield from (f"recall/accuracy@{multiple * steps}" for multiple in config["recall"]["multiples"])
        yield "recall/counts_to"
        return
    horizons = [multiple * steps for multiple in config["rollout"]["multiples"]]
    yield from (f"rollout/nmse@{horizon}" for horizon in horizons)
    if model.members > 1:
        yield from (f"rollout/disagreement@{horizon}" for horizon in horizons)
    if model.noise is not None:
        yield from (f"rollout/{name}@{horizon}" for name in LOW_IS_GOOD for horizon in horizons)
    yield "rollout/valid_prediction_time"
    if config["rollout"]["free_run"] is not None:
        yield from ("free_run/nmse", "free_run/rmse")
