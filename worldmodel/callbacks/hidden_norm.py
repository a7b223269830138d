"""Monitors the hidden state: its size, its movement, and its growth over an episode."""

import math
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.cells.recurrence import previous_states
from worldmodel.errors import UserError, at_least
from worldmodel.rules import BOUNDS

BOUNDED = "--model.rule gated_norm, whose state is bounded for any finite input; "
WAY_OUT = "--trainer.gradient_clip_val 1 or less; a lower --model.learning_rate; a look at the data for huge values"


class HiddenNormMonitor(pl.Callback):
    """Logs the hidden state's norms, and warns once if it explodes and once if it dies.

    Works for any module that returns `outputs["h"]` (B, T, D) and takes `batch["carry"]` (see TruncatedBPTT). Uses, if
    present: `batch["is_first"]` and `batch["valid"]` (B, T), for episodes and padding; the module's method
    `gate(batch, h)`, for the gates; its hyperparameter `rule`, for the rule's bound.

    Logged: `hidden/norm_mean`, `hidden/norm_max` (of ||h||), `hidden/delta_norm` (mean ||h_next - h||),
    `hidden/gate_mean`, `hidden/norm_growth` (see `growth_moments`), `hidden/bound_margin` (1 - max|h_i| / bound).

    Args:
        every_n_steps: Optimizer steps between two logs. Null: the Trainer's log_every_n_steps.
        explode: Warn once if the root mean square of h's entries exceeds this.
        die: Warn once if the root mean square of h's entries, or of their change in a step, falls below this.
    """

    def __init__(self, every_n_steps: int | None = None, explode: float = 100.0, die: float = 1e-4) -> None:
        at_least(1, "hidden.", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.explode = explode
        self.die = die
        self._warned: set[str] = set()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps or trainer.log_every_n_steps
        if not every or trainer.global_step % every:
            return
        if not isinstance(outputs.get("h"), Tensor) or outputs["h"].ndim != 3:
            raise UserError(
                "HiddenNormMonitor: the step returned no outputs['h'], the states (B, T, D) of the segment: return them"
                " beside 'loss', or leave the monitor out"
            )
        metrics = self._measure(trainer, pl_module, outputs["h"], batch)
        pl_module.log_dict(metrics)
        if trainer.is_global_zero:
            self._warn(pl_module, {name: float(value) for name, value in metrics.items()}, outputs["h"].shape[-1])

    def _measure(
        self, trainer: Any, pl_module: pl.LightningModule, h: Tensor, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The metrics over the valid steps of all ranks; a rank whose lanes are all padding adds nothing."""
        everywhere = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        valid = batch.get("valid", everywhere)
        is_first = batch.get("is_first", ~everywhere)
        norm = h.norm(dim=-1)
        delta = (h - previous_states(h, is_first, batch.get("carry"))).norm(dim=-1)
        gate = getattr(pl_module, "gate", None)
        gates = gate(batch, h) if callable(gate) else None
        gate_mean = gates.mean(dim=-1) if isinstance(gates, Tensor) else torch.zeros_like(norm)
        summed = [torch.where(valid, values, 0.0).sum() for values in (norm, delta, gate_mean)]
        totals = torch.stack([*summed, *growth_moments(norm, is_first, valid), valid.sum().to(norm.dtype)])
        size = torch.where(valid.unsqueeze(-1), h, 0.0).abs().amax()
        highest = torch.stack([torch.where(valid, norm, 0.0).amax(), size])
        totals = trainer.strategy.reduce(totals, reduce_op="sum")
        highest = trainer.strategy.reduce(highest, reduce_op="max")
        norm_sum, delta_sum, gate_sum, covariance, variance, count = totals.unbind()
        count = count.clamp(min=1)
        metrics = {
            "hidden/norm_mean": norm_sum / count,
            "hidden/norm_max": highest[0],
            "hidden/delta_norm": delta_sum / count,
            "hidden/norm_growth": covariance / variance.clamp(min=1),
        }
        if gates is not None:
            metrics["hidden/gate_mean"] = gate_sum / count
        if bound := BOUNDS.get(pl_module.hparams.get("rule", "")):
            dim = pl_module.hparams.get("hidden_dim", h.shape[-1])  # a packed state is wider than the rule's D
            metrics["hidden/bound_margin"] = 1 - highest[1] / bound(dim)
        return metrics

    def _warn(self, pl_module: pl.LightningModule, metrics: dict[str, float], dim: int) -> None:
        size, movement = (metrics[f"hidden/{name}"] / math.sqrt(dim) for name in ("norm_mean", "delta_norm"))
        rule = pl_module.hparams.get("rule", "unknown")
        where = f"at step {pl_module.global_step} under the rule {rule!r}"
        if not size < self.explode:
            no_bound = "" if rule in BOUNDS else "No bound is proven for this rule. "
            ways = "Ways out: " + (WAY_OUT if rule in BOUNDS else BOUNDED + WAY_OUT)
            self._once("explodes", f"{where} (root mean square of its entries: {size:.3g}). {no_bound}{ways}.")
        elif size < self.die or movement < self.die:
            self._once(
                "is dead",
                f"{where} (root mean square of its entries: {size:.3g}, of their change in a step: {movement:.3g}): it"
                " remembers nothing. Ways out: --model.gate_bias nearer to 0, a higher --model.learning_rate,"
                " a lower --model.weight_decay",
            )

    def _once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"the hidden state {what} {message}", stacklevel=2)


def growth_moments(norm: Tensor, is_first: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """For the slope of ||h|| over an episode's steps: least squares, an intercept for each stretch of an episode.

    Args:
        norm: (B, T).
        is_first: (B, T) bool, where a stretch begins.
        valid: (B, T) bool, which steps count.

    Returns:
        Numerator and denominator of the slope, () each, which add up over ranks; both 0 where no stretch has two steps.
    """
    lanes, steps = norm.shape
    stretch = is_first.long().cumsum(dim=1) + (steps + 1) * torch.arange(lanes, device=norm.device).unsqueeze(1)
    time = torch.arange(steps, device=norm.device, dtype=norm.dtype).expand_as(norm)
    stretch, time, norm = stretch[valid], time[valid], norm[valid]

    def centred(values: Tensor) -> Tensor:
        total = values.new_zeros(lanes * (steps + 1) + 1)
        count = total.index_add(0, stretch, torch.ones_like(values)).clamp(min=1)
        return values - (total.index_add(0, stretch, values) / count)[stretch]

    time = centred(time)
    return (time * centred(norm)).sum(), time.square().sum()
