"""How far back learning reaches, and whether the data depends on frames further back than that."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from worldmodel.evaluation.diagnosis.measurement import NOT_MEASURED, RED, Finding, Measurement, Subject, some_lanes
from worldmodel.regression import explained, held_out, narrowed

FURTHEST = 4  # times T: longer lags are not measured
LANES = 16
ROUNDS = 8  # steps of each lane whose error is differentiated
LAGS = 128  # beyond T that are tried
WIDEST = 16  # entries of an observation or action; wider ones are projected
INPUTS = 96  # of the regression on what lies within the horizon
FAR_EXPLAINS = 0.1  # R^2: by chance far less, on held-out lanes
FAR_SHARE = 0.01  # of the observations' variance: less is not worth a longer segment
FAR_MASS = 0.5  # of the gradient, where it does not fall to half within T: truncation then leaves most of it out


@dataclass(frozen=True)
class Reach:
    """||d L_t / d z_{t-k}||, mean over steps t, by backpropagation through the whole stretch."""

    gradient: list[float]  # at lag k = 0 ..
    horizon: int  # T
    half_life: int | None  # the first lag from which on the gradient stays below half of its largest; None: none
    beyond: float  # share of the gradient's mass at lags of T and more: what truncation can never see
    hidden: float  # share that truncation hides, on average over the positions in a segment: lags before its start
    errors: int  # steps t that were differentiated

    @property
    def informative(self) -> bool:
        """Whether there are lags beyond T, and any gradient at all."""
        return len(self.gradient) > self.horizon and sum(self.gradient) > 0


@dataclass(frozen=True)
class Dependency:
    """What a frame beyond the horizon linearly explains of the model's error."""

    lag: int  # the one that explains most
    explains: float  # R^2 on held-out lanes, of the error that is left by the frames within the horizon
    share: float  # of the observations' variance that this is
    lags: list[int]
    curve: list[float]  # R^2 of each lag


@dataclass(frozen=True)
class Lags(Measurement):
    reach: Reach | None
    dependency: Dependency | None

    labels = ("gradient over lags", "error explained by frames beyond T = {horizon}")
    panel = "how far back learning reaches (dashed: T)", "lag k (steps)", "‖dL_t / dz_{t-k}‖"

    @classmethod
    def measure(cls, subject: Subject) -> "Lags":
        return cls(reach(subject), dependency(subject))

    def values(self, subject: Subject) -> tuple[str, str]:
        return self._gradient(), self._explained()

    def _gradient(self) -> str:
        if self.reach is None or not sum(self.reach.gradient) > 0:
            return NOT_MEASURED
        half = "never below half"
        if self.reach.half_life is not None:
            half = f"below half from lag {self.reach.half_life}"
        if not self.reach.informative:
            return f"{half}; no lag beyond T = {self.reach.horizon} was there to see"
        return f"{half}; {self.reach.beyond:.1%} of it beyond T, truncation hides {self.reach.hidden:.1%} on average"

    def _explained(self) -> str:
        if self.dependency is None:
            return NOT_MEASURED
        if self.dependency.explains < 0.01:
            return f"none, at lags up to {self.dependency.lags[-1]}"
        return f"{self.dependency.explains:.0%} by the one {self.dependency.lag} steps back"

    def draw(self, axes: Axes, subject: Subject) -> None:
        axes.axvline(subject.horizon, color="0.2", linewidth=0.8, linestyle="--")
        if self.reach is not None and sum(self.reach.gradient) > 0:
            axes.plot([value if value > 0 else np.nan for value in self.reach.gradient])
            axes.set_yscale("log")
        if self.dependency is not None:
            other = axes.twinx()
            other.plot(self.dependency.lags, self.dependency.curve, color=RED, linewidth=1, alpha=0.8)
            other.set_ylim(0, 1)
            other.set_ylabel("R² of the error", color=RED)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if subject.gradient != "tbptt":
            return
        steps, seen, longer = subject.horizon, [], 2 * subject.horizon
        means = "the state carries further than gradients reach: the truncated gradient is not that of the loss"
        far = self.dependency
        if far is not None and far.explains > FAR_EXPLAINS and far.share > FAR_SHARE:
            longer, means = far.lag + 1, "what is to be predicted depends on frames that no gradient reaches"
            seen.append(
                f"the frame {far.lag} steps back explains {far.explains:.0%} of the model's error, beyond T = {steps}"
            )
        curve = self.reach
        if curve and curve.informative and curve.beyond > FAR_MASS and (curve.half_life or steps + 1) > steps:
            seen.append(
                f"{curve.beyond:.0%} of the gradient lies {steps} steps back and more, where truncation cuts it"
            )
        if seen:
            yield Finding("short horizon", 45, "; ".join(seen), means, f"--data.steps {longer} or more")


def reach(subject: Subject) -> Reach | None:
    """Of the term `prediction`, over the whole stretch; None if no step has an error."""
    model, steps, lanes = subject.model, subject.horizon, min(LANES, len(subject.stretch["valid"]))
    stretch = some_lanes(subject.stretch, torch.arange(lanes))
    stretch["num_valid"] = torch.tensor(1.0)  # the sum over steps: L_t in full
    with _watched(model.encoder, model.predictor.head) as seen:
        terms, _, _ = model.losses(stretch)
    z, pred = seen["z"], seen["pred"].transpose(0, 1)  # (B, S + 1, Z), (B, S, Z)
    (error,) = torch.autograd.grad(terms["prediction"], seen["pred"], retain_graph=True)
    error = error.transpose(0, 1)
    counts = stretch["valid"] & (error.norm(dim=-1) > 0)  # some tasks ask for an answer now and then only
    history = subject.trajectory.ages[:lanes]
    if not counts.any():
        return None
    furthest = min(FURTHEST * steps, int(history[counts].max()) + 1)
    total, number, errors = torch.zeros(furthest), torch.zeros(furthest), 0
    generator = torch.Generator().manual_seed(0)
    for anchor in _anchors(counts, history, furthest, generator):
        chosen = torch.zeros_like(counts).scatter_(1, anchor.unsqueeze(1), True) & counts
        cotangent = torch.where(chosen.unsqueeze(-1), error, 0.0)
        gradient = torch.autograd.grad(pred, z, cotangent, retain_graph=True, allow_unused=True)[0]
        norm = torch.zeros(z.shape[:2]) if gradient is None else gradient.norm(dim=-1)
        for lane in torch.nonzero(chosen.any(dim=1)).flatten().tolist():
            t = int(anchor[lane])
            lags = min(int(history[lane, t]) + 1, furthest)
            total[:lags] += norm[lane, t - lags + 1 : t + 1].flip(0)
            number[:lags] += 1
            errors += 1
    mean = total / number.clamp(min=1)
    return summary(mean, steps, errors)


def summary(gradient: Tensor, steps: int, errors: int) -> Reach:
    """What a curve (K,) of gradients over lags says about the horizon T = `steps`."""
    mass = gradient.double()
    whole = float(mass.sum())
    if not whole > 0 or not mass.isfinite().all():
        return Reach(gradient.tolist(), steps, None, 0.0, 0.0, errors)
    below = torch.nonzero(mass >= mass.max() / 2).flatten()
    last = int(below[-1]) + 1
    outside = 1 - mass.cumsum(0) / whole  # at k: what lies at lags above k
    beyond = float(outside[steps - 1].clamp(min=0)) if len(mass) > steps else 0.0
    hidden = float(outside[: min(steps, len(mass))].clamp(min=0).mean())
    return Reach(gradient.tolist(), steps, last if last < len(mass) else None, beyond, hidden, errors)


def _anchors(counts: Tensor, history: Tensor, furthest: int, generator: torch.Generator) -> Iterator[Tensor]:
    """ROUNDS times a step (B,) of each lane: steps with the longest histories, ties broken at random."""
    scores = torch.where(counts, history.clamp(max=furthest - 1).double(), -1.0)
    scores = scores + torch.rand(scores.shape, generator=generator)
    best = scores.argsort(dim=1, descending=True)[:, :ROUNDS]
    yield from best.unbind(dim=1)


@contextmanager
def _watched(encoder: nn.Module, head: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Latents as leaves of the graph, and the predictions that the loss is computed from."""
    seen: dict[str, Tensor] = {}

    def latents(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if "z" in seen:
            return None
        seen["z"] = output.detach().requires_grad_()
        return seen["z"]

    def predictions(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.setdefault("pred", output)

    handles = encoder.register_forward_hook(latents), head.register_forward_hook(predictions)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def dependency(subject: Subject) -> Dependency | None:
    """Regress the error of the next observation on frames at lags beyond T, one lag at a time.

    What a linear regression on the frames within the horizon explains is subtracted first: the error of a model that
    has learned little depends on everything that the present depends on. Dependencies are found at a fixed lag, if they
    are at least partly linear; None where no episode is long enough, or the stretch has one lane.
    """
    stretch, steps = subject.stretch, subject.horizon
    pred, _, _ = subject.model.closed_loop(stretch["obs"][:, :-1], stretch["action"], stretch["is_first"], None)
    truth = stretch["obs"][:, 1:]
    if not pred.isfinite().all():
        return None
    scale = truth[stretch["valid"]].double().std(dim=0).clamp(min=1e-6).numpy()
    truth, error = (narrowed(values.double().numpy() / scale, WIDEST) for values in (truth, truth - pred))
    frames = narrowed(stretch["obs"][:, :-1].double().numpy() / scale, WIDEST)
    frames = np.concatenate([frames, narrowed(stretch["action"].double().numpy(), WIDEST)], axis=-1)
    valid, history = stretch["valid"].numpy(), subject.trajectory.ages.numpy()
    near = _near(steps, frames.shape[-1])
    lane, step = np.nonzero(valid & (history >= steps))
    half = lane % 2 == 0
    left = error[lane, step]
    inputs = np.concatenate([frames[lane, step - lag] for lag in near], axis=-1)
    predictions = held_out(inputs, left, half)
    if predictions is None:
        return None
    if explained(predictions, left) > 0:
        left = left - predictions
    lags = range(steps + 1, min(FURTHEST * steps, history.max()) + 1)
    lags = list(lags)[:: max(1, -(-len(lags) // LAGS))]
    curve, tried = [], []
    for lag in lags:
        old = history[lane, step] >= lag
        values = held_out(frames[lane[old], step[old] - lag], left[old], half[old])
        if values is not None:
            tried.append(lag)
            curve.append(max(explained(values, left[old]), 0.0))
    if not curve:
        return None
    best = int(np.argmax(curve))
    variance = np.square(truth[valid] - truth[valid].mean(axis=0)).sum(axis=-1).mean()
    share = curve[best] * float(left.var(axis=0).sum() / max(variance, 1e-12))
    return Dependency(tried[best], curve[best], share, tried, curve)


def _near(steps: int, width: int) -> list[int]:
    """Lags within the horizon: all, or as many as INPUTS allows, denser near the present."""
    most = max(2, INPUTS // max(width, 1))
    if steps < most:
        return list(range(steps + 1))
    return sorted(set(np.geomspace(1, steps + 1, most).astype(int) - 1))
