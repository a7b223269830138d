"""The cheap part of `worldmodel diagnose`, logged while a model trains."""

from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from worldmodel.errors import UserError
from worldmodel.evaluation.diagnosis.clock import clock_share
from worldmodel.evaluation.diagnosis.gates import gates
from worldmodel.evaluation.diagnosis.gradients import judge, part_of
from worldmodel.evaluation.diagnosis.representation import representation
from worldmodel.evaluation.diagnosis.stretch import flat


class DiagnosisMonitor(pl.Callback):
    """Logs, every few steps, what of a diagnosis needs no further pass through the model.

    Works for any module that returns `outputs["h"]` (B, T, D); with `batch["valid"]`, `batch["step"]` (B, T) it knows
    padding and the steps of episodes, with a method `gate(batch, h)` the gates.

    Logged: `diagnosis/gradient/<part>` (norm of a part's gradient, before clipping), `diagnosis/without_gradient` (the
    number of parameters whose gradient is none, zero or NaN), `diagnosis/vanishing`, `diagnosis/rank_h` (effective),
    `diagnosis/dead_h` (share of units), `diagnosis/gate_saturated`, `diagnosis/gate_stuck`, `diagnosis/clock` (R^2 of
    the step's number from h, on held-out lanes). Of several ranks, the first one's; the gradient is that of all.

    Args:
        every_n_steps: how often; None: the Trainer's log_every_n_steps.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"DiagnosisMonitor's every_n_steps is {every_n_steps}: it must be at least 1")
        self.every_n_steps = every_n_steps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(isinstance(parameter, DTensor) for parameter in pl_module.parameters()):
            raise UserError(
                "DiagnosisMonitor looks at whole gradients, and this strategy divides them: leave it out of"
                " trainer.callbacks, or use --trainer.strategy ddp"
            )

    def _is_due(self, trainer: Any, step: int) -> bool:
        every = self.every_n_steps or trainer.log_every_n_steps
        return bool(every) and step % every == 0

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if not self._is_due(trainer, trainer.global_step + 1):  # the step that is being made
            return
        named = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        norms = {name: 0.0 if p.grad is None else float(p.grad.double().norm()) for name, p in named.items()}
        squares: dict[str, float] = defaultdict(float)
        for name, norm in norms.items():
            squares[part_of(name)] += norm**2
        found = judge(named, norms, {name for name, p in named.items() if p.grad is not None})
        states = [p.state for p in found]
        pl_module.log_dict(
            {f"diagnosis/gradient/{part}": square**0.5 for part, square in squares.items()}
            | {
                "diagnosis/without_gradient": float(sum(state in ("none", "zero", "nan") for state in states)),
                "diagnosis/vanishing": float(states.count("vanishing")),
            }
        )

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer, trainer.global_step):
            pl_module.log_dict(measure(pl_module, batch, outputs["h"]))


def measure(module: Any, batch: dict[str, Any], h: Tensor) -> dict[str, float]:
    """What states h (B, T, D) of a batch tell; names as in DiagnosisMonitor."""
    valid = batch.get("valid", torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))
    found: dict[str, float] = {}
    if (state := representation(flat(h, valid))) is not None:
        found |= {"rank_h": state.effective_rank, "dead_h": len(state.dead) / state.dim}
    gate: Any = getattr(module, "gate", None)
    if gate is not None and (seen := gates(gate(batch, h), valid)) is not None:
        found |= {"gate_saturated": seen.saturated, "gate_stuck": seen.stuck}
    if "step" in batch and (share := clock_share(h, batch["step"], valid)) is not None:
        found["clock"] = share
    return {f"diagnosis/{name}": value for name, value in found.items()}
