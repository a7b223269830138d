"""Open-loop evaluation far past the trained horizon, after each validation and at the end of the fit."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from worldmodel.callbacks.metrics import log_last_weights, log_picture
from worldmodel.errors import UserError
from worldmodel.evaluation.figures import rollout_figure, save
from worldmodel.evaluation.film import save_animation
from worldmodel.evaluation.horizon import HorizonCurves, horizon_curves

MULTIPLES = (1, 2, 5, 10, 50)  # of T, at which errors are told


class RolloutEvaluation(pl.Callback):
    """Measures the error of open-loop rollouts at multiples of the trained horizon, against copy-last and the mean.

    Asks the module for `observe` and `open_loop` (see evaluation.rollouts.Model), the DataModule for `splits[split]`
    (Episodes) and `steps` (T). Logs `rollout/nmse@H`, `rollout/copy_last@H`, `rollout/mean@H` for every multiple H that
    the episodes reach, `rollout/valid_prediction_time` and `rollout/crossing` (the first horizon whose error passes the
    threshold; absent where none does); writes `rollout.csv`, `rollout.png` and, of images, `rollout.gif` into the run's
    folder, and the pictures to every logger that takes them. On several ranks, each computes the same.

    Args:
        multiples: of the segment length, at which the error is logged.
        burn_in: frames that the model sees before a rollout; null: as many as a segment has.
        starts: rollouts of an episode.
        max_episodes: of the split, that are evaluated.
        threshold: of the normalised error, for the valid prediction time and the crossing.
        examples: rollouts in the picture.
    """

    def __init__(
        self,
        multiples: list[int] | None = None,
        burn_in: int | None = None,
        starts: int = 8,
        max_episodes: int = 64,
        threshold: float = 0.5,
        examples: int = 3,
    ) -> None:
        self.multiples = tuple(sorted(set(multiples or MULTIPLES)))
        if self.multiples[0] < 1 or starts < 1 or max_episodes < 1 or examples < 1 or (burn_in or 0) < 0:
            raise UserError("rollout.multiples, starts, max_episodes, examples must be at least 1, burn_in at least 0")
        self.burn_in, self.starts, self.max_episodes = burn_in, starts, max_episodes
        self.threshold, self.examples = threshold, examples
        self.curves: HorizonCurves | None = None
        self._evaluated_step: int | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and _predicts_values(pl_module):
            pl_module.log_dict(self._evaluate(trainer, pl_module, "val"))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _predicts_values(pl_module):
            pl_module.log_dict(self._evaluate(trainer, pl_module, "test"))

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Evaluate the last weights, if no validation just did."""
        if self._evaluated_step == trainer.global_step or trainer.fast_dev_run or not _predicts_values(pl_module):
            return
        log_last_weights(trainer, pl_module, lambda: self._evaluate(trainer, pl_module, "val"))

    def _evaluate(self, trainer: Any, pl_module: Any, split: str) -> dict[str, float]:
        data: Any = trainer.datamodule
        whole = data.splits[split]
        episodes = whole.select(range(min(self.max_episodes, len(whole))))
        how = (self.multiples, self.burn_in, self.starts, self.threshold, self.examples)
        self.curves = None  # before the next are made: examples of images are large
        self.curves = horizon_curves(pl_module, episodes, data.steps, *how, reference=whole)
        self._evaluated_step = trainer.global_step
        log_dir = trainer.log_dir  # a collective: on every rank
        if trainer.is_global_zero and log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.curves.write_csv(folder / "rollout.csv")
            rule = pl_module.hparams.get("rule", type(pl_module).__name__)
            source = getattr(data, "env_id", type(data).__name__)
            trained = f" after {trainer.global_step} training steps" if trainer.state.fn == "fit" else ""
            title = f"{source}, {rule}: open loop{trained}"
            figure = rollout_figure(self.curves, data.steps, title)
            save(figure, folder / "rollout.png")
            log_picture(trainer, "rollout/picture", figure, folder / "rollout.png")
            if self.curves.examples[0].layout.images:
                save_animation(self.curves.examples, folder / "rollout.gif", data.steps)
                _log_animation(trainer, folder / "rollout.gif")
        return rollout_metrics(self.curves, data.steps, self.multiples)


def _predicts_values(pl_module: pl.LightningModule) -> bool:
    """Not so with the objective tokens, which RecallEvaluation judges."""
    return pl_module.hparams.get("objective") != "tokens"


def rollout_metrics(curves: HorizonCurves, steps: int, multiples: tuple[int, ...]) -> dict[str, float]:
    """The curves at multiples of T steps; at their last horizon, where they reach no multiple."""
    reached = [m * steps for m in multiples if m * steps <= len(curves.horizon)] or [len(curves.horizon)]
    metrics = {
        f"rollout/{name}@{horizon}": float(getattr(curves, name)[horizon - 1])
        for horizon in reached
        for name in ("nmse", "copy_last", "mean")
    }
    metrics["rollout/valid_prediction_time"] = curves.valid_time
    if curves.crossing is not None:
        metrics["rollout/crossing"] = float(curves.crossing)
    return metrics


def _log_animation(trainer: pl.Trainer, path: Path) -> None:
    for logger in trainer.loggers:
        log_video = getattr(logger, "log_video", None)  # W&B
        if callable(log_video):
            log_video("rollout/animation", [str(path)], step=trainer.global_step, format=["gif"])
