"""AdamW with a warm-up, then a constant or cosine learning rate."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel.runs.structure import Unfit

Schedule = Literal["constant", "cosine"]


def adamw(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    schedule: Schedule,
    warmup_steps: int,
    planned_steps: float,
    fused: bool = True,
    stacked: Iterable[nn.Parameter] = (),
) -> Any:
    """What `configure_optimizers` returns, for the parameters that require a gradient.

    The rate rises linearly to `learning_rate` over `warmup_steps`, then is constant, or falls as a cosine to a
    hundredth at `planned_steps` of the whole fit (infinite: constant). `weight_decay` is on matrices only, not on
    biases and normalisation. `fused`, one kernel for all, does not work with both a loss scaler and gradient clipping.
    `stacked` are those of the parameters that have an axis of members in front.
    """
    of_members = set(map(id, stacked))
    trained = [p for p in parameters if p.requires_grad]
    matrices = [p.ndim > 1 + (id(p) in of_members) for p in trained]
    groups = [
        {
            "params": [p for p, is_matrix in zip(trained, matrices, strict=True) if is_matrix],
            "weight_decay": weight_decay,
        },
        {"params": [p for p, is_matrix in zip(trained, matrices, strict=True) if not is_matrix], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    optimizer.register_load_state_dict_post_hook(check_state)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, warmup_steps))
        if schedule == "constant" or not math.isfinite(planned_steps):
            return warm
        done = min(1.0, step / max(1, planned_steps))
        return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise Unfit unless all moments have their parameter's shape: one kernel for all reads past shorter ones."""
    for parameter, state in optimizer.state.items():
        for name, moment in state.items():
            shape = torch.Size() if name == "step" else parameter.shape
            if not isinstance(moment, Tensor) or moment.shape != shape or moment.dtype.is_complex:
                found = tuple(moment.shape) if isinstance(moment, Tensor) else type(moment).__name__
                raise Unfit(f"{name} of the optimizer is {found}, not {tuple(shape)}")


def retune(trainer: Any, learning_rate: float, weight_decay: float) -> None:
    """Change the highest rate and the decay of `adamw` during a fit; the schedule continues where it is."""
    optimizer, scheduler = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] *= learning_rate / scheduler.base_lrs[number]
        group["initial_lr"] = scheduler.base_lrs[number] = learning_rate
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
    optimizer.param_groups[0]["weight_decay"] = weight_decay
