"""The callbacks of a run, in the order in which they run."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from worldmodel.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from worldmodel.callbacks.final_validation import FinalValidation
from worldmodel.callbacks.guard import NumericalGuard
from worldmodel.callbacks.metrics import FirstLoss
from worldmodel.callbacks.predictions import PredictionWriter
from worldmodel.callbacks.progress import FitProgress, LearningCurve
from worldmodel.callbacks.random_state import RandomState
from worldmodel.experiments.configs import Kind
from worldmodel.experiments.monitor import best_by, early_stopping

SHOWN: dict[Kind, dict[str, str]] = {  # while it is trained: metrics, and words for them
    "world_model": {"train/loss": "loss", "val/loss": "val loss"},
    "policy": {"policy/return_mean": "return", "val/return_mean": "val return", "train/entropy": "entropy"},
    "imagine": {"train/return": "imagined return", "val/return_mean": "val return", "train/entropy": "entropy"},
}
EACH_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def callbacks(
    kind: Kind,
    stage: str,
    folder: Path,
    config: Any,
    data: Any,
    *,
    first: Callback | None = None,
    save_config: Callback | None = None,
    exchange: Callable[[LastCheckpoint], Callback | None] = lambda last: None,
    pause: Callback | None = None,
    max_skipped: int = 10,
) -> list[Callback]:
    """All callbacks of a run. LightningCLI adds none; the Trainer moves only the user's checkpoints, to the end.

    Args:
        kind: what is trained.
        stage: the subcommand: fit, validate, test or predict.
        folder: of the run.
        config: of the subcommand, instantiated: `hidden`, `tbptt`, `rollout` and `recall` are callbacks,
            `early_stopping` is StoppingOptions.
        data: the LightningDataModule.
        first: runs before all others.
        save_config: writes config.yaml.
        exchange: makes the Exchange of a population's member, which saves with LastCheckpoint.
        pause: ends the fit at a step, from where it can go on.
        max_skipped: updates in a row that NumericalGuard leaves out before it ends the training.
    """
    trainer, fit, is_policy = config["trainer"], stage == "fit", kind == "policy"
    shows = trainer["enable_progress_bar"] is not False
    saves = fit and trainer["enable_checkpointing"] is not False and not trainer["fast_dev_run"]
    done = (lambda: (data.steps, data.total_steps)) if is_policy else None
    best = best_by(config)
    shown = SHOWN[kind] | {best[0]: SHOWN[kind].get(best[0], best[0])}
    checkpoints = folder / "checkpoints"
    last = LastCheckpoint(checkpoints, config["checkpoint_every"], config["checkpoint_keep"]) if saves else None
    exchanges = exchange(last) if last else None
    # an Exchange saves the last validation's score, and a policy's last row comes with its last validation
    at_end = last.end if last and exchanges is None and not is_policy else None
    ordered = [
        first,  # a comparison's stopwatch: what the others do at the end of training does not count
        PredictionWriter() if kind == "world_model" else None,
        FinalValidation(at_end),  # before all that evaluates at the end of training, then in this validation
        LearningCurve(folder) if fit and is_policy else None,  # after FinalValidation, whose return it draws last
        FitProgress(shown, done) if shows else None,  # after FinalValidation, whose loss it shows
        FirstLoss() if fit and kind == "world_model" else None,  # says later whether training helped
        NumericalGuard(folder, max_skipped) if fit else None,  # before all that take the state: it repairs the state
        RandomState() if saves else None,  # before all that may draw random numbers as a step starts
        *as_list(trainer["callbacks"]),  # the user's, which may replace the state too
        config["hidden"],  # sees what TruncatedBPTT will take
        config.get("tbptt"),  # after NumericalGuard
        config.get("rollout"),  # after FinalValidation
        config.get("recall"),  # after FinalValidation
        early_stopping(config) if fit else None,  # before its count is saved
        save_config,  # config.yaml, once the others are set up
        pause,  # after all that a validation measures, before the end is saved
        exchanges,  # after all that carry something to the next step, before it is saved
        last,  # after all others, when what they carry is up to date
        BestCheckpoint(checkpoints, *best) if saves else None,  # the Trainer has checkpoints last
    ]
    return [callback for callback in ordered if callback is not None]


def leave_out_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Hide, in each callback, those hooks of a training step that its class does not override.

    The Trainer enters its profiler around every hook of every callback, even the base class's empty ones, but skips
    what cannot be called: with a dozen callbacks that saves a millisecond a step.
    """
    for callback in callbacks:
        for name in EACH_STEP:
            if getattr(type(callback), name) is getattr(Callback, name):
                setattr(callback, name, None)


def as_list(value: Any) -> list[Any]:
    """Options of the Trainer may be None, one thing or a list."""
    return [] if value is None else value if isinstance(value, list) else [value]
