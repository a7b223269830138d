"""What a step does to a small change of the state: eigenvalues and the largest Lyapunov exponent."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.evaluation.diagnosis.stretch import Trajectory

TRANSIENT = 8  # steps in which a random direction turns to the one that grows most
ENTRIES = 1 << 22  # of all Jacobians together
MOST = 32  # Jacobians


@dataclass(frozen=True)
class Spectrum:
    """Of dh_{t+1} / dh_t along real trajectories, in float64."""

    radius_mean: float  # of the largest |eigenvalue|, over states
    radius_max: float
    lyapunov: float  # log growth a step of a change of the state; NaN where no episode is long enough
    spread: float  # standard deviation of the exponent over lanes
    eigenvalues: list[tuple[float, float]]  # of the states looked at, real and imaginary part

    def growth(self, steps: int) -> float:
        """The factor by which a gradient grows over so many steps."""
        return math.exp(min(self.lyapunov * steps, 700.0))


def spectrum(trajectory: Trajectory, seed: int = 0) -> Spectrum:
    """Measure.

    The exponent is that of the adjoint product w_t = J_t' w_{t+1}, normalised at every step (the power method of
    Benettin et al. 1980, which a product of Jacobians and its transpose share). It is what backpropagation multiplies,
    and every cell has it, also one with a custom gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    states = _sampled(trajectory, generator)
    if not len(states):
        return Spectrum(math.nan, math.nan, math.nan, math.nan, [])
    values = torch.linalg.eigvals(torch.stack([jacobian(trajectory, b, t) for b, t in states.tolist()]))
    radius = values.abs().amax(dim=-1)
    pairs = torch.view_as_real(values).flatten(0, 1).tolist()
    mean, spread = _lyapunov(trajectory, generator)
    return Spectrum(float(radius.mean()), float(radius.max()), mean, spread, [(x, y) for x, y in pairs])


def _sampled(trajectory: Trajectory, generator: torch.Generator) -> Tensor:
    """(n, 2) lanes and steps, not at a start of an episode: there the state is set, not made from another."""
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
    """Mean and spread over lanes; steps of which the direction is still turning, or that are padding, do not count."""
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
