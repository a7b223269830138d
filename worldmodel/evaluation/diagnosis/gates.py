"""How often gates are shut or wide open, and which never move."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH = 0.01, 0.99  # the sigmoid's slope there is a twenty-fifth of its largest
STUCK = 0.999  # of the steps: a unit whose gate is saturated on one side in so many of them
BINS = 20


@dataclass(frozen=True)
class Gates:
    """Of the share of each entry that a step overwrites."""

    shut: float  # share of values below LOW
    open: float  # share of values above HIGH
    stuck_shut: float  # share of units that are (almost) always shut: they are never written
    stuck_open: float  # share of units that are (almost) always open: they remember nothing of their own
    mean: float
    histogram: list[float]  # shares of BINS equal parts of [0, 1]

    @property
    def saturated(self) -> float:
        return self.shut + self.open

    @property
    def stuck(self) -> float:
        return self.stuck_shut + self.stuck_open


def gates(values: Tensor | None, valid: Tensor) -> Gates | None:
    """Of gate values (B, T, D) at valid steps (B, T); None without a gate, or where none is finite."""
    if values is None:
        return None
    rows = values[valid].double()
    rows = rows[rows.isfinite().all(dim=-1)]
    if not len(rows):
        return None
    shut, wide = rows < LOW, rows > HIGH
    low, high = (float((side.double().mean(dim=0) >= STUCK).double().mean()) for side in (shut, wide))
    histogram = torch.histc(rows.flatten(), BINS, 0.0, 1.0) / rows.numel()
    return Gates(
        float(shut.double().mean()), float(wide.double().mean()), low, high, float(rows.mean()), histogram.tolist()
    )
