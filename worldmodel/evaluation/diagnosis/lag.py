"""How far back learning reaches: the gradient of a step's prediction error with respect to earlier latents."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.stretch import Model, ages, some_lanes

FURTHEST = 4  # times T: what lies beyond is not looked for
LANES = 16
ROUNDS = 8  # steps of each lane whose error is differentiated


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
    def tells(self) -> bool:
        """Whether there are lags beyond T, and any gradient at all."""
        return len(self.gradient) > self.horizon and sum(self.gradient) > 0


def reach(model: Model, stretch: Batch, steps: int, seed: int = 0) -> Reach | None:
    """Of the term `prediction`, over a stretch longer than T = `steps`; None if no step has a history to speak of."""
    stretch = some_lanes(stretch, torch.arange(min(LANES, len(stretch["valid"]))))
    stretch["num_valid"] = torch.tensor(1.0)  # the sum over steps: L_t in full
    with _watched(model) as seen:
        terms, _, _ = model.losses(stretch)
    z, pred = seen["z"], seen["pred"].transpose(0, 1)  # (B, S + 1, Z), (B, S, Z)
    (error,) = torch.autograd.grad(terms["prediction"], seen["pred"], retain_graph=True)
    error = error.transpose(0, 1)
    counts = stretch["valid"] & (error.norm(dim=-1) > 0)  # some tasks ask for an answer now and then only
    history = ages(stretch["is_first"])
    if not counts.any():
        return None
    furthest = min(FURTHEST * steps, int(history[counts].max()) + 1)
    total, number, errors = torch.zeros(furthest), torch.zeros(furthest), 0
    generator = torch.Generator().manual_seed(seed)
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
    """What a curve (K,) of gradients over lags says of the horizon T = `steps`."""
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
    """ROUNDS times a step (B,) of each lane: steps with a long history, chosen at random among the longest."""
    scores = torch.where(counts, history.clamp(max=furthest - 1).double(), -1.0)
    scores = scores + torch.rand(scores.shape, generator=generator)
    best = scores.argsort(dim=1, descending=True)[:, :ROUNDS]
    yield from best.unbind(dim=1)


@contextmanager
def _watched(model: Model) -> Iterator[dict[str, Tensor]]:
    """Latents as leaves of the graph, and the predictions that the loss is made of, as the model computes them."""
    seen: dict[str, Tensor] = {}

    def latents(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if "z" in seen:
            return None
        seen["z"] = output.detach().requires_grad_()
        return seen["z"]

    def predictions(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.setdefault("pred", output)

    handles = [
        model.encoder.register_forward_hook(latents),
        model.predictor.head.register_forward_hook(predictions),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
