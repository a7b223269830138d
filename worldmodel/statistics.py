"""Means with 95% intervals, and tests of paired runs: pure functions of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import special

ALPHA = 0.05  # of every test and interval
EQUAL = 1e-9  # relative: runs that agree to nine digits count as equal
MAX_EXPONENT = math.log(np.finfo(float).max)
TINY = float(np.finfo(float).tiny)  # stands in for an error of exactly zero, so that it has a logarithm


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval."""

    mean: float  # of the n runs in it; with n = 0, of the diverged ones: infinite if one overflowed
    low: float  # NaN with fewer than two runs: one seed has no interval
    high: float
    n: int  # runs in the mean
    diverged: int = 0  # runs left out: not finite, or above the limit


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test of mean difference zero."""

    mean: float  # of the differences; NaN without any
    low: float  # its 95% interval; NaN with fewer than two
    high: float
    p: float  # two-sided; NaN: no verdict
    n: int


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) with low and high = mean -+ t(0.975, n - 1) s / sqrt(n); NaN where n is too small."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    half = float(special.stdtrit(n - 1, 1 - ALPHA / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def arithmetic(values: Sequence[float]) -> Estimate:
    """Mean and t-interval of the finite values; the others count as diverged."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite and values:
        return Estimate(math.inf, math.nan, math.nan, 0, len(values))
    return Estimate(*t_interval(finite), len(finite), len(values) - len(finite))


def geometric(values: Sequence[float], limit: float = math.inf) -> Estimate:
    """Geometric mean, and the t-interval of the logarithm.

    Args:
        values: at least 0, or NaN.
        limit: values above it, or not finite, count as diverged and are left out.
    """
    kept = [value for value in values if math.isfinite(value) and value <= limit]
    diverged = len(values) - len(kept)
    if kept:
        mean, low, high = (exp(value) for value in t_interval([_log(value) for value in kept]))
        return Estimate(mean, low, high, len(kept), diverged)
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    overflowed = not all(map(math.isfinite, values))
    mean = math.inf if overflowed else math.exp(float(np.mean([_log(value) for value in values])))
    return Estimate(mean, math.nan, math.nan, 0, diverged)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate of `factor` times the quantity; factor > 0."""
    return Estimate(
        estimate.mean * factor, estimate.low * factor, estimate.high * factor, estimate.n, estimate.diverged
    )


def within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The estimate of a quantity that lies between two limits: its interval ends there."""
    low, high = max(estimate.low, least), min(estimate.high, most)  # NaN stays: it comes first
    return Estimate(estimate.mean, low, high, estimate.n, estimate.diverged)


def log_ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """log(a / b) of each pair; exactly 0 where the two agree to nine digits."""
    logs = [_log(x) - _log(y) for x, y in zip(a, b, strict=True)]
    return [0.0 if abs(value) < EQUAL else value for value in logs]


def paired_test(differences: Sequence[float]) -> PairedTest:
    """A t-test of mean zero on the differences of paired runs.

    Differences without spread have no t. All zero: p = 1. Equal but not zero: p = 0 with three or more, and NaN with
    two, which may be equal by chance.
    """
    n = len(differences)
    mean, low, high = t_interval(differences)
    if n < 2:
        return PairedTest(mean, low, high, math.nan, n)
    if np.ptp(differences) <= EQUAL * abs(mean):
        p = 1.0 if mean == 0 else 0.0 if n >= 3 else math.nan
    else:
        t = mean / (float(np.std(differences, ddof=1)) / math.sqrt(n))
        p = 2 * float(special.stdtr(n - 1, -abs(t)))
    return PairedTest(mean, low, high, p, n)


def count_test(diverged_a: int, diverged_b: int, n: int) -> float:
    """p of "both diverge equally often", for two variants with n independent seeds each.

    Each of the 2n runs speaks for a (a's that did not diverge, b's that did) or for b. If both diverge with the same
    probability q, the number that speaks for a is binomial at q = 1/2, and spreads less at any other q: this two-sided
    binomial test is exact there, and conservative elsewhere. NaN with fewer than two seeds.
    """
    if n < 2:
        return math.nan
    fewer = n - abs(diverged_a - diverged_b)
    return min(1.0, 2 * float(special.bdtr(fewer, 2 * n, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979): p times the number of p not yet passed, never falling.

    NaN, a test that could not be made, stays NaN and does not count.
    """
    corrected = [math.nan] * len(p)
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    for rank, i in enumerate(order):
        corrected[i] = min(1.0, p[i] * (len(order) - rank))
    for before, i in pairwise(order):
        corrected[i] = max(corrected[i], corrected[before])
    return corrected


def exp(value: float) -> float:
    """e to the value; infinite where a float cannot hold it."""
    return math.inf if value > MAX_EXPONENT else math.exp(value)


def _log(value: float) -> float:
    return math.log(max(value, TINY))
