"""What a step does to a small change of the state: eigenvalues and the largest Lyapunov exponent."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from worldmodel.evaluation.diagnosis.measurement import NOT_MEASURED, Finding, Measurement, Subject, Trajectory

EXPANSION = 100.0  # of a gradient over T steps; clipping at a usual norm then sees nothing but this
TRANSIENT = 8  # steps in which a random direction turns to the one that grows most
ENTRIES = 1 << 22  # of all Jacobians together
MOST = 32  # Jacobians
WIDEST = 2048  # entries of a state whose eigenvalues are found: the time grows as their cube


@dataclass(frozen=True)
class Spectrum(Measurement):
    """Of dh_{t+1} / dh_t along real trajectories, in float64.

    The exponent is that of the adjoint product w_t = J_t' w_{t+1}, normalised at every step (the power method of
    Benettin et al. 1980, which a product of Jacobians and its transpose share). It is what backpropagation multiplies,
    and every cell has it, even one with a custom gradient.
    """

    radius_mean: float  # of the largest |eigenvalue|, over states; NaN where a state is wider than WIDEST
    radius_max: float
    lyapunov: float  # log growth per step of a change of the state; NaN where no episode is long enough
    spread: float  # standard deviation of the exponent over lanes
    eigenvalues: list[tuple[float, float]]  # of the sampled states, real and imaginary part

    key = "spectrum"
    labels = ("state's Jacobian",)
    panel = "eigenvalues of the state's Jacobian", "", ""

    @classmethod
    def measure(cls, subject: Subject) -> "Spectrum":
        trajectory, generator = subject.trajectory, torch.Generator().manual_seed(0)
        states = _sampled(trajectory, generator)
        if not len(states):
            return cls(math.nan, math.nan, math.nan, math.nan, [])
        if trajectory.h.shape[-1] > WIDEST:
            return cls(math.nan, math.nan, *_lyapunov(trajectory, generator), [])
        values = torch.linalg.eigvals(torch.stack([jacobian(trajectory, b, t) for b, t in states.tolist()]))
        radius = values.abs().amax(dim=-1)
        pairs = [(x, y) for x, y in torch.view_as_real(values).flatten(0, 1).tolist()]
        return cls(float(radius.mean()), float(radius.max()), *_lyapunov(trajectory, generator), pairs)

    def growth(self, steps: int) -> float:
        """The factor by which a gradient grows over so many steps."""
        return math.exp(min(self.lyapunov * steps, 700.0))

    def values(self, subject: Subject) -> tuple[str]:
        if math.isnan(self.radius_mean) and math.isnan(self.lyapunov):
            return (NOT_MEASURED,)
        text = f"spectral radius {self.radius_mean:.3g}, at most {self.radius_max:.3g}"
        if math.isnan(self.radius_mean):
            text = f"no eigenvalues of more than {WIDEST} entries"
        if math.isnan(self.lyapunov):
            return (f"{text}; episodes are too short for a Lyapunov exponent",)
        return (f"{text}; largest Lyapunov exponent {self.lyapunov:.3g} ± {self.spread:.1g} a step",)

    def draw(self, axes: Axes, subject: Subject) -> None:
        angle = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8)
        axes.set_aspect("equal", adjustable="datalim")
        if self.eigenvalues:
            axes.plot(*zip(*self.eigenvalues, strict=True), ".", markersize=3, alpha=0.5)
            axes.set_xlabel(f"radius {self.radius_mean:.3g}, Lyapunov exponent {self.lyapunov:.3g} a step")

    def findings(self, subject: Subject) -> Iterator[Finding]:
        factor = self.growth(subject.horizon)
        if self.lyapunov > 0 and factor > EXPANSION:
            yield Finding(
                "exploding gradient",
                70,
                f"the largest Lyapunov exponent is {self.lyapunov:.3g} a step: a factor of {factor:.3g}"
                f" over T = {subject.horizon}",
                "a small change of the state is blown up, and so is its gradient:"
                " clipping then decides what is learned",
                "recurrent weights of a smaller scale, a shorter --data.steps, or --model.rule gated_norm or gru",
            )


def _sampled(trajectory: Trajectory, generator: torch.Generator) -> Tensor:
    """(n, 2) lanes and steps, not at a start of an episode: there the state does not depend on another."""
    finite = trajectory.before.isfinite().all(dim=-1) & trajectory.h.isfinite().all(dim=-1)
    places = torch.nonzero(trajectory.valid & ~trajectory.is_first & finite)
    number = max(4, min(MOST, ENTRIES // trajectory.h.shape[-1] ** 2))
    return places[torch.randperm(len(places), generator=generator)[:number]]


def jacobian(trajectory: Trajectory, lane: int, step: int) -> Tensor:
    """dh_{t+1} / dh_t (D, D) at a lane and step; row i is the gradient of entry i: one backward pass over D copies."""
    x, h = trajectory.x[lane, step], trajectory.before[lane, step]
    dim = len(h)
    copies = h.expand(dim, dim).clone().requires_grad_()
    after = trajectory.predictor.cell.step(x.expand(dim, -1), copies)
    (rows,) = torch.autograd.grad(after.diagonal().sum(), copies)
    return rows


def _lyapunov(trajectory: Trajectory, generator: torch.Generator) -> tuple[float, float]:
    """Mean and spread over lanes; padding does not count, nor do steps at which the direction is still turning."""
    lanes, steps, dim = trajectory.h.shape

    def random() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(lanes, dim, generator=generator, dtype=torch.float64), dim=-1)

    w, logs = random(), torch.zeros(lanes, steps, dtype=torch.float64)
    since = torch.zeros(lanes, dtype=torch.long)
    counted = torch.zeros(lanes, steps, dtype=torch.bool)
    for t in reversed(range(steps)):
        before = trajectory.before[:, t].clone().requires_grad_()
        (w,) = torch.autograd.grad(trajectory.predictor.cell.step(trajectory.x[:, t], before), before, w)
        size = w.norm(dim=-1, keepdim=True)
        logs[:, t] = size.squeeze(-1).clamp(min=1e-30).log()
        counted[:, t] = (since >= TRANSIENT) & ~trajectory.is_first[:, t] & trajectory.valid[:, t]
        fresh = trajectory.is_first[:, t : t + 1] | ~(size > 1e-30) | ~size.isfinite()
        w = torch.where(fresh, random(), w / size)
        since = torch.where(fresh.squeeze(-1), 0, since + 1)
    counted &= logs.isfinite()
    if not counted.any():
        return math.nan, math.nan
    per_lane = [float(logs[b][counted[b]].mean()) for b in range(lanes) if counted[b].any()]
    spread = float(torch.tensor(per_lane).std()) if len(per_lane) > 1 else 0.0
    return float(logs[counted].mean()), spread
