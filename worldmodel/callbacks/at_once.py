"""Numbers that cannot wait for the Trainer's own logging."""

from collections.abc import Callable
from typing import Any

import torch


def log_at_once(trainer: Any, metrics: dict[str, float]) -> None:
    """To all loggers and callback_metrics: `self.log` is silent between two of log_every_n_steps, and at the end."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def log_last_weights(trainer: Any, pl_module: Any, evaluate: Callable[[], dict[str, float]]) -> None:
    """Log what an evaluation comes to at the end of a training."""
    pl_module.eval()
    metrics = evaluate()
    pl_module.train()
    log_at_once(trainer, metrics)
