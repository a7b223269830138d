"""A fit as a member of a population: it reports its score, and may continue with another member's weights."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from worldmodel.callbacks.checkpoints import LastCheckpoint, is_before_validation
from worldmodel.callbacks.final_validation import validate
from worldmodel.callbacks.metrics import log_at_once
from worldmodel.errors import UserError, nearest
from worldmodel.runs.checkpoint import read_checkpoint, taken_from
from worldmodel.stale_state import RefreshRatio

STATE = "Exchange"  # where a checkpoint keeps the report
CLIP = "trainer.gradient_clip_val"
MODEL = "model."
RATIO = "pbt/post_exploit_loss_ratio"


@dataclass(frozen=True)
class Report:
    """What a member reports."""

    step: int  # at which it was due
    score: float  # infinite if it is not a number: never the best
    hyperparameters: Mapping[str, float]  # of the steps before
    exploits: int = 0  # how often the member has taken another's weights


class Exchange(pl.Callback):
    """Every `interval` optimizer steps: validates, saves last.ckpt, asks, and waits for the answer.

    An exploit takes weights, optimizer, learning rate schedule, loss scale and normalisers from the donor's checkpoint
    and sets the hyperparameters. The member keeps its lanes, the order of its data and its random number generators.
    TruncatedBPTT notices that weights were loaded and refreshes the carried state.

    A fit resumed from a checkpoint of a report asks again before it trains, since it may have stopped before the answer
    was carried out. An exchange that is due on an epoch's last step waits for the next step, as LastCheckpoint does.

    The module's `mutable` names the hyperparameters that `change(values)` sets. Logged, at once:
    `pbt/exploitation_count`, the exploits since the start; `pbt/post_exploit_loss_ratio` (see RefreshRatio), of the
    steps' losses, or of the outputs' `segment_losses` (N,) if a batch is not the segment after the one before: a
    policy's value loss.

    Must be before LastCheckpoint among the callbacks, and after all that carry something from step to step.

    Args:
        interval: optimizer steps between two reports.
        metric: of the Trainer, after a validation: the score.
        worst: the score if it is not finite: inf or -inf.
        hyperparameters: their present values, by their names on the command line.
        last: saves.
        ask: takes the report, may wait, and returns None, or for an exploit the donor's checkpoint and the
            hyperparameters to continue with.
    """

    def __init__(
        self,
        interval: int,
        metric: str,
        worst: float,
        hyperparameters: Mapping[str, float],
        last: LastCheckpoint,
        ask: Callable[[Report], tuple[Path, Mapping[str, float]] | None],
    ) -> None:
        self.interval, self.metric, self.worst = interval, metric, worst
        self.hyperparameters, self.last, self.ask = dict(hyperparameters), last, ask
        self.report: Report | None = None
        self.exploits = 0
        self._due = False
        self._ratio = RefreshRatio()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.report is not None:
            self._consult(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for loss in _segment_losses(outputs):
            if (ratio := self._ratio.add(loss)) is not None:
                log_at_once(trainer, {RATIO: ratio})
        self._due |= trainer.global_step % self.interval == 0 and trainer.global_step != self._reported()
        if not self._due or is_before_validation(trainer):
            return
        validate(trainer)
        self._write_report(trainer)
        self.last.save(trainer)
        if trainer.global_step < trainer.max_steps:
            self._consult(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due:  # the last step is also an epoch's; FinalValidation has validated, LastCheckpoint will save
            self._write_report(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.report is None else {"report": dict(vars(self.report))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "report" in state_dict:
            self.report = Report(**state_dict["report"])
            self.exploits = self.report.exploits

    def _reported(self) -> int:
        return -1 if self.report is None else self.report.step

    def _write_report(self, trainer: Any) -> None:
        known = trainer.callback_metrics
        if self.metric not in known:
            candidates = [name for name in known if name.startswith(("val/", "rollout/", "recall/"))]
            raise UserError(f"there is no metric {self.metric!r}: {nearest(self.metric, candidates)}")
        score = float(known[self.metric])
        step = trainer.global_step // self.interval * self.interval
        score = score if math.isfinite(score) else self.worst
        self.report, self._due = Report(step, score, dict(self.hyperparameters), self.exploits), False

    def _consult(self, trainer: Any, pl_module: Any) -> None:
        assert self.report is not None
        if (answer := self.ask(self.report)) is None:
            return
        checkpoint, hyperparameters = answer
        donor = read_checkpoint(checkpoint)
        pl_module.load_state_dict(donor["state_dict"])
        trainer.strategy.load_optimizer_state_dict(donor)
        for config, state in zip(trainer.lr_scheduler_configs, donor["lr_schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        precision = trainer.precision_plugin
        if (scale := donor.get(type(precision).__qualname__)) is not None:
            precision.load_state_dict(scale)
        self._set(trainer, pl_module, hyperparameters)
        self.exploits += 1
        self._ratio.start()
        log_at_once(trainer, {"pbt/exploitation_count": float(self.exploits)})

    def _set(self, trainer: Any, pl_module: Any, values: Mapping[str, float]) -> None:
        self.hyperparameters.update(values)
        pl_module.change({key.removeprefix(MODEL): value for key, value in values.items() if key.startswith(MODEL)})
        if CLIP in values:
            trainer.gradient_clip_val = values[CLIP]


def _segment_losses(outputs: Any) -> Iterable[Tensor]:
    if not isinstance(outputs, dict):
        return ()
    return outputs.get("segment_losses", outputs["loss"].reshape(1)).unbind()


def report_of(checkpoint: Path) -> Report | None:
    """The report of the fit that saved this checkpoint; None if it is no member of a population."""
    with taken_from(checkpoint):
        state = read_checkpoint(checkpoint)["callbacks"].get(STATE, {})
        return Report(**state["report"]) if "report" in state else None
