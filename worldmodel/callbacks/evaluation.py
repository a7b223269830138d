"""Evaluation far past the trained length: open-loop rollouts, and accuracy on sequence tasks."""

import csv
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from worldmodel.callbacks.metrics import log_at_once, log_picture, row_step
from worldmodel.data.episodes import Episodes
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.evaluation.calibration import Calibration, scored, summary, with_bands
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.figures import recall_figure, rollout_figure, save, save_animation
from worldmodel.evaluation.floor import Floor
from worldmodel.evaluation.free_run import FreeRun, free_run, long_enough
from worldmodel.evaluation.linear import LinearCurve, evaluated
from worldmodel.evaluation.selection import MULTIPLES, RolloutOptions
from worldmodel.tasks.recall import RecallScores, recall


class _Evaluation(pl.Callback):
    """Evaluates after each validation and test, and at the end of a fit unless the last weights were just validated."""

    wanted = True  # else it evaluates nothing: a fit that another metric judges is done sooner
    _evaluated_step: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._evaluated_step = None  # of an earlier fit, perhaps of another model

    def applies(self, trainer: Any, pl_module: pl.LightningModule) -> bool:
        """Whether module and data are of the kind that is evaluated."""
        raise NotImplementedError

    def evaluate(self, trainer: Any, pl_module: Any, split: str) -> dict[str, float]:
        """Measure, write files into the run's folder, and return what is logged."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not at its end: callbacks that validate other weights, which are saved, take them back there
        if self.wanted and not trainer.sanity_checking and self.applies(trainer, pl_module):
            pl_module.log_dict(self._evaluate(trainer, pl_module, "val"))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.applies(trainer, pl_module):
            pl_module.log_dict(self._evaluate(trainer, pl_module, "test"))

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        done = not self.wanted or self._evaluated_step == trainer.global_step or trainer.fast_dev_run
        if not done and self.applies(trainer, pl_module):
            pl_module.eval()
            metrics = self._evaluate(trainer, pl_module, "val")
            pl_module.train()
            log_at_once(trainer, metrics)

    def _evaluate(self, trainer: Any, pl_module: pl.LightningModule, split: str) -> dict[str, float]:
        self._evaluated_step = trainer.global_step
        return self.evaluate(trainer, pl_module, split)


def _folder(trainer: Any) -> Path | None:
    """The run's folder, on the first rank; None on the others, or without a logger."""
    log_dir = trainer.log_dir  # a collective: on every rank
    if not trainer.is_global_zero or log_dir is None or not trainer.loggers:
        return None
    Path(log_dir).mkdir(parents=True, exist_ok=True)
    return Path(log_dir)


class RolloutEvaluation(_Evaluation):
    """Measures the error of open-loop rollouts at multiples of the trained horizon, against three baselines.

    The module needs `observe` and `open_loop` (see evaluation.rollouts.Forecaster), the DataModule `splits[split]`
    (Episodes) and `steps` (T). A module's `measure_ahead`, if it has that, is called before; it may return the Scores
    of the split's futures. Logs `rollout/nmse@H`, `rollout/copy_last@H`, `rollout/mean@H` and, of vectors,
    `rollout/linear@H` (a linear autoregression, fitted to `splits["train"]` in the first evaluation) for every multiple
    H that the episodes reach, `rollout/valid_prediction_time` and `rollout/crossing` (the first horizon whose error
    passes the threshold; absent where none does). Of a model with a distribution, logs `rollout/crps@H`,
    `rollout/coverage90@H` and what else evaluation.calibration.Calibration holds. Writes `rollout.csv`, `rollout.png`
    and, of images, `rollout.gif` into the run's folder, and the pictures to every logger that takes them. With
    `free_run`, logs `free_run/nmse` and `free_run/rmse` too, and writes them into `rollout.csv`. On several ranks, each
    computes the same.

    Args:
        options: the arguments of RolloutOptions, such as `max_episodes=4`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = RolloutOptions(**options)
        self.curves: HorizonCurves | None = None
        self.calibration: Calibration | None = None
        self._linear, self._floor = LinearCurve(), Floor()

    def applies(self, trainer: Any, pl_module: pl.LightningModule) -> bool:
        if pl_module.hparams.get("objective") == "tokens":
            return False
        if all(hasattr(trainer.datamodule, name) for name in ("splits", "steps")):
            return True
        warnings.warn(
            "RolloutEvaluation measures nothing: it takes a DataModule with `splits` and `steps`, such as"
            " EpisodeDataModule, and there is none",
            stacklevel=2,
        )
        return False

    def on_fit_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Raise UserError before anything is trained, if no episode is long enough for the free run."""
        if self.options.free_run is not None and self.applies(trainer, pl_module):
            self._free_run_episodes(trainer.datamodule.splits["val"])

    def evaluate(self, trainer: Any, pl_module: Any, split: str) -> dict[str, float]:
        data = trainer.datamodule
        measure = getattr(pl_module, "measure_ahead", None)
        measured: Any = measure() if callable(measure) else None
        self.curves = None  # before the next are computed: examples of images are large
        self.curves = curves = evaluated(pl_module, data.splits, split, data.steps, self.options, self._linear)
        self.calibration = calibrated = None
        if getattr(pl_module, "noise", None) is not None:
            found = scored(pl_module, data.splits[split], data.steps, self.options) if measured is None else measured
            source = getattr(data, "test_source" if split == "test" else "source", None)
            floor = self._floor(source, data.splits[split], data.steps, found)
            self.calibration = calibrated = summary(found, pl_module, floor)
            shown = self.options.first_episodes(data.splits[split])  # on every rank: weights may be divided among them
            self.curves = curves = with_bands(pl_module, shown, curves, data.steps, self.options.samples)
        run = self._free_run(pl_module, data.splits[split], data.steps)
        if (folder := _folder(trainer)) is not None:
            curves.write_csv(folder / "rollout.csv")
            if calibrated is not None:
                calibrated.append_csv(folder / "rollout.csv")
            if run is not None:
                run.append_csv(folder / "rollout.csv")
            rule = pl_module.hparams.get("rule", type(pl_module).__name__)
            source = getattr(data, "env_id", type(data).__name__)
            trained = f" after {trainer.global_step} training steps" if trainer.state.fn == "fit" else ""
            figure = rollout_figure(curves, data.steps, f"{source}, {rule}: open loop{trained}", calibration=calibrated)
            save(figure, folder / "rollout.png")
            log_picture(trainer, "rollout/picture", figure, folder / "rollout.png")
            if curves.examples[0].layout.images:
                save_animation(curves.examples, folder / "rollout.gif", data.steps)
                for logger in trainer.loggers:
                    if callable(log_video := getattr(logger, "log_video", None)):  # W&B
                        paths = [str(folder / "rollout.gif")]
                        log_video("rollout/animation", paths, step=row_step(trainer), format=["gif"])
        metrics = self._metrics(curves, data.steps) | ({} if run is None else run.metrics())
        horizons = [multiple * data.steps for multiple in self.options.multiples]
        return metrics | ({} if calibrated is None else calibrated.metrics(horizons))

    def _free_run(self, model: Any, whole: Episodes, steps: int) -> FreeRun | None:
        seen = self.options.free_run
        return None if seen is None else free_run(model, self._free_run_episodes(whole), steps, seen, whole)

    def _free_run_episodes(self, whole: Episodes) -> Episodes:
        """Those that are evaluated and long enough."""
        return long_enough(self.options.first_episodes(whole), self.options.free_run or 1, "--rollout.free_run")

    def _metrics(self, curves: HorizonCurves, steps: int) -> dict[str, float]:
        """The curves at multiples of T steps; at their last horizon, where they reach no multiple."""
        last = len(curves.horizon)
        metrics = curves.metrics([m * steps for m in self.options.multiples if m * steps <= last] or [last])
        metrics["rollout/valid_prediction_time"] = curves.valid_time
        if curves.crossing is not None:
            metrics["rollout/crossing"] = float(curves.crossing)
        return metrics


class RecallEvaluation(_Evaluation):
    """On data of a sequence task (tasks.sequences), measures accuracy on fresh sequences of 1 to 50 times T steps.

    The DataModule needs `task` and `steps` (T); nothing is done without a task, or where the objective is not tokens.
    Logs `recall/accuracy@L` for each length L, and for a counting task `recall/counts_to`; writes `recall.csv` and
    `recall.png` into the run's folder.

    Args:
        multiples: Lengths of the sequences, in multiples of the segment length.
        sequences: Sequences of each length.
        limit: Largest n that a counting task is tried up to.
        seed: Seed of the sequences.
    """

    def __init__(
        self, multiples: tuple[int, ...] = MULTIPLES, sequences: int = 256, limit: int = 2000, seed: int = 1_000_000
    ) -> None:
        self.multiples = sorted(set(multiples))
        if min(*self.multiples, sequences, limit) < 1:
            raise UserError("recall.multiples, recall.sequences and recall.limit must be at least 1")
        self.sequences, self.limit, self.seed = sequences, limit, seed
        self.recalled: RecallScores | None = None

    def applies(self, trainer: Any, pl_module: pl.LightningModule) -> bool:
        task = getattr(getattr(trainer, "datamodule", None), "task", None)
        return task is not None and pl_module.hparams.get("objective") == "tokens"

    def evaluate(self, trainer: Any, pl_module: Any, split: str) -> dict[str, float]:
        data = trainer.datamodule
        lengths = [multiple * data.steps for multiple in self.multiples]
        self.recalled = recalled = recall(pl_module, data.task, lengths, self.sequences, self.seed, self.limit)
        pairs = list(zip(recalled.lengths, recalled.accuracy, strict=True))
        if (folder := _folder(trainer)) is not None:
            with whole_file(folder / "recall.csv") as temporary, temporary.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["length", "accuracy"])
                writer.writerows(pairs)
            title = f"{data.env_id}, {pl_module.hparams.get('rule', type(pl_module).__name__)}"
            save(recall_figure(recalled, data.steps, title), folder / "recall.png")
        metrics = {f"recall/accuracy@{length}": accuracy for length, accuracy in pairs}
        return metrics | ({} if recalled.counts_to is None else {"recall/counts_to": float(recalled.counts_to)})
