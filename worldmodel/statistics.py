"""The interval of a mean: wherever a few independent numbers are told as one."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

ALPHA = 0.05  # of every test and interval


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean, and mean -+ t(0.975, n - 1) s / sqrt(n), as (mean, low, high). NaN where n is too small for them."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    half = _t(ALPHA, n) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def _t(alpha: float, n: int) -> float:
    """What |t| passes with probability alpha by chance, of n values."""
    return float(special.stdtrit(n - 1, 1 - alpha / 2))
