"""How the state's norm grows over a long closed loop, and by which law."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from worldmodel.evaluation.diagnosis.measurement import (
    NOT_MEASURED,
    Finding,
    Measurement,
    Subject,
    Trajectory,
    follow_unbroken,
)
from worldmodel.rules import BOUNDS

Law = Literal["bounded", "sqrt", "linear", "exponential"]

LONG = 4  # times T: a law of growth cannot be told from a transient on less
FEWEST = 2  # lanes in a mean
POINTS = 32  # of the curve that are fitted, evenly on a log scale: neighbours say the same
SETTLED = 4  # a bounded curve has come to rest in a quarter of the steps; a slower one is not told from growth
RISE = 1.1  # what grows by less than this over the last three quarters is bounded for every purpose
FLOOR = 1e-6  # relative residual: below it all fits are perfect
GROWN = 1.5  # times the norm at T, of the state and of what heads see of it: less is no problem, whatever its law
LARGE = 100.0  # root mean square of an entry of h, as HiddenNormMonitor has it


@dataclass(frozen=True)
class Growth(Measurement):
    """mean ||h_t|| over lanes, t steps after the state's zero start.

    The laws are a + b (1 - e^{-t/tau}), a + b sqrt(t), a + b t and a + b e^{rate t}.
    """

    norm: list[float]  # at t = 1 ..; it ends where the state is not finite
    law: Law
    exponent: float  # d log ||h|| / d log t over the last three quarters: 0 bounded, 0.5 sqrt, 1 linear
    rate: float  # per step, of `exponential`; else 0
    residuals: dict[Law, float]  # root mean square of the relative residual of each law's best fit
    finite: bool
    unbroken: bool  # the episodes were too short, and were followed as one
    unit: float  # root mean square of an entry of h at the end
    read: list[float]  # mean ||read(h_t)||, of what heads see; some cells keep to themselves what grows
    read_law: Law

    key = "growth"
    labels = ("growth of ‖h‖",)
    panel = "the state's norm", "steps", "mean ‖h‖"

    @classmethod
    def measure(cls, subject: Subject) -> "Growth":
        trajectory = subject.trajectory
        norm = _norms(trajectory, trajectory.h)
        unbroken = len(norm) < min(LONG * subject.horizon, trajectory.valid.shape[1])
        if unbroken:
            trajectory = follow_unbroken(subject.model, subject.stretch)
            norm = _norms(trajectory, trajectory.h)
        read = _norms(trajectory, trajectory.predictor.cell.read(trajectory.h))
        norm, read = norm[: _whole(norm)], read[: _whole(read)]
        unit = float(norm[-1]) / trajectory.h.shape[-1] ** 0.5 if len(norm) else float("nan")
        shape = *law_of(norm), trajectory.finite, unbroken, unit
        return cls(norm.tolist(), *shape, read.tolist(), law_of(read)[0])

    def values(self, subject: Subject) -> tuple[str]:
        if not self.norm:
            return (NOT_MEASURED,)
        text = f"{self.law}, t^{self.exponent:.2g}"
        if self.law == "exponential":
            text += f", {100 * self.rate:.3g}% a step"
        text += f"; {self.norm[-1]:.3g} after {len(self.norm)} steps"
        text += " (episodes gone through as one)" if self.unbroken else ""
        return (text if self.finite else f"{text}, then not finite",)

    def draw(self, axes: Axes, subject: Subject) -> None:
        axes.set_title(f"the state's norm: {self.law}")
        if not self.norm:
            return
        axes.plot(np.arange(1, len(self.norm) + 1), self.norm)
        axes.axvline(subject.horizon, color="0.2", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        if self.law != "bounded":
            axes.set_yscale("log")

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if not self.norm:
            return
        grown = _grown(self.norm, subject.horizon)
        long = len(self.norm) > subject.horizon and "bounded" not in (self.law, self.read_law)
        grows = long and min(grown, _grown(self.read, subject.horizon)) > GROWN
        if self.finite and not grows and self.unit < LARGE:
            return
        law = {"sqrt": "as sqrt(t)", "linear": "linearly", "exponential": "exponentially", "bounded": "and rests"}
        way = f"||h|| grows {law[self.law]} (t^{self.exponent:.2g})"
        if self.law == "exponential":
            way = f"||h|| grows exponentially, by {100 * self.rate:.3g}% a step"
        end = f"after {len(self.norm)} steps it is {self.norm[-1]:.3g}, {grown:.3g} times that at T = {subject.horizon}"
        change = "--model.rule gated_norm, whose state is bounded for any finite input"
        if subject.rule in BOUNDS:
            change = "first weights of a smaller scale, a lower --model.learning_rate"
        yield Finding(
            "exploding state",
            75,
            f"{way}: {end}" + ("" if self.finite else ", then not finite"),
            "predictions far beyond the trained horizon start from states that no training has seen",
            f"{change}; train with --tbptt.start carry, so that old states are seen",
        )


def _grown(norm: list[float], steps: int) -> float:
    """The norm at the end relative to that after `steps` steps."""
    return norm[-1] / max(norm[min(steps, len(norm)) - 1], 1e-30) if norm else float("nan")


def _norms(trajectory: Trajectory, states: Tensor) -> np.ndarray:
    """(N,) means over all states (B, S, X) of one age, as long as there are several."""
    age, norm = trajectory.ages[trajectory.valid], states.detach().norm(dim=-1)[trajectory.valid]
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
    fits = []
    for shape in shapes:
        values = curve(shape)
        inputs = np.stack([1 / y, values / values[-1] / y], axis=1)  # of the relative residual
        scale = np.linalg.norm(inputs, axis=0)
        weights = np.linalg.lstsq(inputs / scale, np.ones_like(t), rcond=None)[0] / scale
        if weights[1] < 0:
            weights = np.array([scale[0] ** -2 * inputs[:, 0].sum(), 0.0])
        residual = float(np.sqrt(np.mean(np.square(inputs @ weights - 1))))
        fits.append((residual, float(shape)))
    return min(fits)
