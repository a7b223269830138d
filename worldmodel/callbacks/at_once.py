"""What cannot wait for the Trainer's own logging."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure


def log_at_once(trainer: Any, metrics: dict[str, float]) -> None:
    """To all loggers and callback_metrics: `self.log` is silent between two of log_every_n_steps, and at the end."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def log_picture(trainer: Any, name: str, figure: Figure, path: Path) -> None:
    """A figure, and the PNG it was saved as, to all loggers that take pictures."""
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)  # W&B
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)  # TensorBoard
        if callable(log_image):
            log_image(name, [str(path)], step=trainer.global_step)
        elif callable(add_figure):
            add_figure(name, figure, trainer.global_step)
