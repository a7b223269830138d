"""How the state's norm grows over a long closed loop, and by which law."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.stretch import Model, Trajectory, ages, follow_unbroken

Law = Literal["bounded", "sqrt", "linear", "exponential"]

LONG = 4  # times T: a law of growth cannot be told from a transient on less
FEWEST = 2  # lanes in a mean
POINTS = 32  # of the curve that are fitted, evenly on a log scale: neighbours say the same
SETTLED = 4  # a bounded curve has come to rest in a quarter of the steps; a slower one is not told from growth
RISE = 1.1  # what grows by less than this over the last three quarters is bounded for every purpose
FLOOR = 1e-6  # relative residual: below it all fits are perfect


@dataclass(frozen=True)
class Growth:
    """mean ||h_t|| over lanes, t steps after the state's zero start.

    The laws are a + b (1 - e^{-t/tau}), a + b sqrt(t), a + b t and a + b e^{rate t}.
    """

    norm: list[float]  # at t = 1 ..; it ends where the state is not finite
    law: Law
    exponent: float  # d log ||h|| / d log t over the last three quarters: 0 bounded, 0.5 sqrt, 1 linear
    rate: float  # per step, of `exponential`; else 0
    residuals: dict[Law, float]  # root mean square of the relative residual of each law's best fit
    finite: bool
    unbroken: bool  # the episodes were too short, and were gone through as one
    unit: float  # the root mean square of an entry of h at the end
    read: list[float]  # mean ||read(h_t)||, of what heads see; some cells keep to themselves what grows
    read_law: Law

    def grown(self, steps: int) -> float:
        """The norm at the end relative to that after `steps` steps."""
        return _grown(self.norm, steps)

    def read_grown(self, steps: int) -> float:
        """The same of what heads see."""
        return _grown(self.read, steps)


def _grown(norm: list[float], steps: int) -> float:
    return norm[-1] / max(norm[min(steps, len(norm)) - 1], 1e-30) if norm else float("nan")


def growth(model: Model, stretch: Batch, trajectory: Trajectory, steps: int) -> Growth:
    """Of a model over a stretch of several times T = `steps` steps, and its trajectory there."""
    norm = _norms(trajectory, trajectory.h)
    unbroken = len(norm) < min(LONG * steps, stretch["valid"].shape[1])
    if unbroken:
        trajectory = follow_unbroken(model, stretch)
        norm = _norms(trajectory, trajectory.h)
    read = _norms(trajectory, trajectory.predictor.cell.read(trajectory.h))
    norm, read = norm[: _whole(norm)], read[: _whole(read)]
    unit = float(norm[-1]) / trajectory.h.shape[-1] ** 0.5 if len(norm) else float("nan")
    law, exponent, rate, residuals = law_of(norm)
    shape = law, exponent, rate, residuals, trajectory.finite, unbroken, unit
    return Growth(norm.tolist(), *shape, read.tolist(), law_of(read)[0])


def _norms(trajectory: Trajectory, states: Tensor) -> np.ndarray:
    """(N,) means over all states (B, S, X) of one age, as long as there are several."""
    age, norm = ages(trajectory.is_first)[trajectory.valid], states.detach().norm(dim=-1)[trajectory.valid]
    if not len(age):
        return np.zeros(0)
    count = torch.bincount(age)
    mean = torch.bincount(age, weights=norm) / count.clamp(min=1)
    least = min(FEWEST, int(count.max()))
    return mean[: (count >= least).long().cumprod(0).sum()].numpy()


def _whole(norm: np.ndarray) -> int:
    """How many of the first values are finite."""
    finite = np.isfinite(norm)
    return len(norm) if finite.all() else int(np.argmin(finite))


def law_of(norm: np.ndarray) -> tuple[Law, float, float, dict[Law, float]]:
    """The law that a curve (N,) follows, its exponent, its rate, and every law's relative residual.

    Least squares of the relative residual on a log-spaced sample; among the laws the one with the least
    n log(residual^2) + k log n, k parameters (BIC).
    """
    if len(norm) < 8 or not norm[-1] > 0:
        return "bounded", 0.0, 0.0, {}
    t = np.unique(np.geomspace(1, len(norm), POINTS).astype(int)).astype(float)
    y = np.maximum(norm[t.astype(int) - 1], 1e-300)
    last = len(norm)
    fits: dict[Law, tuple[float, float, int]] = {  # residual, shape, parameters
        "bounded": (*_best(t, y, lambda tau: 1 - np.exp(-t / tau), np.geomspace(0.3, last / SETTLED, 100)), 3),
        "sqrt": (*_best(t, y, lambda _: np.sqrt(t), np.ones(1)), 2),
        "linear": (*_best(t, y, lambda _: t, np.ones(1)), 2),
    }
    rates, residual, rate = np.geomspace(1 / last, min(600 / last, 5.0), 100), np.inf, 0.0
    for _ in range(3):  # each time ten times finer
        residual, rate = _best(t, y, lambda rate: np.exp(rate * t), rates)
        step = rates[1] / rates[0]
        rates = np.geomspace(rate / step, min(rate * step, 650 / last), 20)
    fits["exponential"] = residual, rate, 3
    score: list[tuple[float, Law]] = [
        (len(t) * np.log(max(r, FLOOR) ** 2) + k * np.log(len(t)), law) for law, (r, _, k) in fits.items()
    ]
    late = t >= last / SETTLED
    exponent = float(np.polyfit(np.log(t[late]), np.log(y[late]), 1)[0])
    _, law = min(score)
    if SETTLED**exponent < RISE:
        law = "bounded"
    return law, exponent, fits[law][1] if law == "exponential" else 0.0, {name: fit[0] for name, fit in fits.items()}


def _best(
    t: np.ndarray, y: np.ndarray, curve: Callable[[float], np.ndarray], shapes: np.ndarray
) -> tuple[float, float]:
    """The least relative residual of a + b curve(shape) with b >= 0, and the shape that has it."""
    found = []
    for shape in shapes:
        values = curve(shape)
        inputs = np.stack([1 / y, values / values[-1] / y], axis=1)  # of the relative residual
        scale = np.linalg.norm(inputs, axis=0)
        weights = np.linalg.lstsq(inputs / scale, np.ones_like(t), rcond=None)[0] / scale
        if weights[1] < 0:
            weights = np.array([scale[0] ** -2 * inputs[:, 0].sum(), 0.0])
        residual = float(np.sqrt(np.mean(np.square(inputs @ weights - 1))))
        found.append((residual, float(shape)))
    return min(found)
