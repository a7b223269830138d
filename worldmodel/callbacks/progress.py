"""How far a fit is, and how well a policy learns."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from worldmodel.callbacks.metrics import log_at_once, log_picture
from worldmodel.evaluation.figures import learning_figure, save
from worldmodel.runs.display import Display
from worldmodel.runs.structure import check

PICTURE = "returns.png"
TERMS = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction")  # of a step's outputs


class FitProgress(ProgressBar):
    """Shows the progress of the whole fit, on the first rank.

    Args:
        shown: metrics, and the words for them.
        done: returns how far the fit is and how far it goes; None: count optimizer steps.
    """

    def __init__(self, shown: Mapping[str, str], done: Callable[[], tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.shown, self.done = shown, done
        self._enabled = True
        self._display: Display | None = None
        self._open = ExitStack()

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        planned = trainer.estimated_stepping_batches
        step, total = trainer.global_step, int(planned) if math.isfinite(planned) else None
        if self.done is not None:
            step, total = self.done()
        self._display = self._open.enter_context(Display("training", total, step, more=lambda: self._metrics(trainer)))
        if not self._display.is_bar:
            self._display.print(f"training: {total or 'no fixed number of'} steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._display is not None:
            self._display.update(self._step(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._display is not None:
            self._display.update(self._step(trainer), now=True)
            self._open.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._open.close()

    def _step(self, trainer: pl.Trainer) -> int:
        return trainer.global_step if self.done is None else self.done()[0]

    def _metrics(self, trainer: pl.Trainer) -> str:
        known = trainer.callback_metrics
        return "  ".join(f"{label} {float(known[name]):.4g}" for name, label in self.shown.items() if name in known)


class LearningCurve(pl.Callback):
    """Logs once a rollout, at no cost per step, and draws returns.png at the end of a fit.

    Logged: `train/policy_loss`, `train/value_loss`, `train/entropy`, `train/kl`, `train/clip_fraction`, `train/loss`
    (means over the rollout's steps of training), and the DataModule's `metrics`: `policy/steps` (of the environments,
    so far), `policy/return_mean` and `policy/episode_steps` (of the last hundred episodes), `policy/value_error`
    (before any training on the rollout), `policy/steps_per_second` (of the rollout before, training included).

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.trained: list[tuple[int, float]] = []  # environment steps, mean return
        self.validated: list[tuple[int, float]] = []
        self._rollout, self._metrics = 0, dict[str, float]()
        self._summed: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.rollouts != self._rollout:
            self._log(trainer)
            self._rollout, self._metrics = data.rollouts, dict(data.metrics)
        self._summed.append(torch.stack([outputs[name].detach() for name in TERMS]))

    def on_validation_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and "val/return_mean" in trainer.callback_metrics:
            self.validated.append((trainer.datamodule.steps, float(trainer.callback_metrics["val/return_mean"])))

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._log(trainer)
        rule = pl_module.hparams["rule"]
        figure = learning_figure(self.trained, self.validated, f"{trainer.datamodule.env_id}, {rule}")
        save(figure, self.folder / PICTURE)
        log_picture(trainer, "policy/picture", figure, self.folder / PICTURE)

    def state_dict(self) -> dict[str, Any]:
        return {name: [list(point) for point in getattr(self, name)] for name in ("trained", "validated")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check(state_dict, {"trained": [[float]], "validated": [[float]]}, "LearningCurve")
        self.trained, self.validated = ([(int(n), r) for n, r in state_dict[name]] for name in ("trained", "validated"))

    def _log(self, trainer: Any) -> None:
        """Log the rollout whose steps of training are over."""
        if not self._summed:
            return
        means = torch.stack(self._summed).mean(dim=0).tolist()
        self._summed = []
        log_at_once(trainer, {f"train/{name}": value for name, value in zip(TERMS, means, strict=True)} | self._metrics)
        if "policy/return_mean" in self._metrics:
            self.trained.append((int(self._metrics["policy/steps"]), self._metrics["policy/return_mean"]))
