"""How a policy learns: the numbers of each rollout, and a picture of the returns."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.callbacks.at_once import log_at_once, log_picture
from worldmodel.evaluation.figures import learning_figure, save

PICTURE = "returns.png"
TERMS = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction")  # of a step's outputs


class LearningCurve(pl.Callback):
    """Logs once a rollout, which costs nothing a step, and draws returns.png at the end of a fit.

    Logged: `train/policy_loss`, `train/value_loss`, `train/entropy`, `train/kl`, `train/clip_fraction`, `train/loss`
    (means over the rollout's steps of training), and the DataModule's `metrics`: `policy/steps` (of the environments,
    so far), `policy/return_mean` and `policy/episode_steps` (of the last hundred episodes), `policy/value_error` (of
    the values before any training on the rollout), `policy/steps_per_second` (collecting and training; of the rollout
    before).

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.trained: list[tuple[int, float]] = []  # environment steps, mean return
        self.played: list[tuple[int, float]] = []
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
            self.played.append((trainer.datamodule.steps, float(trainer.callback_metrics["val/return_mean"])))

    def on_train_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self._log(trainer)
        rule = pl_module.hparams["rule"]
        figure = learning_figure(self.trained, self.played, f"{trainer.datamodule.env_id}, {rule}")
        save(figure, self.folder / PICTURE)
        log_picture(trainer, "policy/picture", figure, self.folder / PICTURE)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": [list(point) for point in self.trained], "played": [list(point) for point in self.played]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained, self.played = ([(int(n), r) for n, r in state_dict[name]] for name in ("trained", "played"))

    def _log(self, trainer: Any) -> None:
        """The rollout whose steps of training are over."""
        if not self._summed:
            return
        means = torch.stack(self._summed).mean(dim=0).tolist()
        self._summed = []
        log_at_once(trainer, {f"train/{name}": value for name, value in zip(TERMS, means, strict=True)} | self._metrics)
        if "policy/return_mean" in self._metrics:
            self.trained.append((int(self._metrics["policy/steps"]), self._metrics["policy/return_mean"]))
