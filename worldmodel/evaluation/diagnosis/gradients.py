"""How large each parameter's gradient is, and which term of the loss reaches which part of the model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.stretch import Model

State = Literal["ok", "none", "zero", "nan", "vanishing"]

# A gradient below this, relative to the parameter's size and, entry for entry, to the median of its part of the model:
# AdamW divides by the gradient's own size, but float32 has lost it in the sum of the loss's other gradients.
VANISHING = 1e-6

# What usually lies behind it; in the order in which it should be looked at.
CAUSES: dict[State, str] = {
    "none": "no term of the loss depends on it: a hard choice (argmax, top-k, a comparison) or a detach stands in the"
    " way, or its output is not used",
    "zero": "its output is multiplied by zero, or feeds units that are dead or saturated",
    "nan": "the parameter or the data holds NaN or infinity, or the state overflows",
    "vanishing": "it lies behind saturated gates or activations, or a weight of nearly zero",
}


@dataclass(frozen=True)
class ParameterGradient:
    """Of one parameter over the batches."""

    name: str
    part: str  # of the model
    size: int
    norm: float  # of the parameter
    gradient: float  # root mean square over batches of the gradient's norm; 0 where there is none
    state: State


@dataclass(frozen=True)
class Gradients:
    parameters: list[ParameterGradient]
    reach: dict[str, dict[str, float]]  # term -> part -> norm of the weighted term's gradient; absent where it has none

    def of_state(self, state: State) -> list[ParameterGradient]:
        return [p for p in self.parameters if p.state == state]

    @property
    def not_finite(self) -> list[str]:
        """Parameters that hold NaN or infinity themselves."""
        return [p.name for p in self.parameters if not torch.tensor(p.norm).isfinite()]

    def past_encoder(self) -> list[str]:
        """Terms that train the recurrence, and do not reach the encoder whose latents it is fed with."""
        if not any(p.part == "encoder" for p in self.parameters):
            return []
        return [t for t, parts in self.reach.items() if parts.get("predictor.cell") and not parts.get("encoder")]


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: encoder, predictor.cell, predictor.head, decoder, ..."""
    words = name.split(".")
    return ".".join(words[:2] if words[0] == "predictor" else words[:1])


def gradients(model: Model, batches: Sequence[Batch], carry: bool = True) -> Gradients:
    """Of the loss on each batch, with the state carried from batch to batch, as in training.

    Args:
        model: any; its gradients (`p.grad`) are left alone.
        batches: consecutive.
        carry: false: each batch starts from zeros.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    squares: dict[str, float] = dict.fromkeys(named, 0.0)
    has: set[str] = set()
    reach: dict[str, dict[str, float]] = {}
    state: Tensor | None = None
    for batch in batches:
        here = batch if state is None or not carry else cast(Batch, {**batch, "carry": state})
        terms, _, state = model.losses(here)
        total: dict[str, Tensor] = {}
        for term, weight in model.weights.items():
            parts: dict[str, float] = defaultdict(float)
            for name, gradient in _of(weight * terms[term], named).items():
                total[name] = gradient + total[name] if name in total else gradient
                parts[part_of(name)] += float(gradient.double().square().sum())
            seen = reach.setdefault(term, {})
            seen |= {part: seen.get(part, 0.0) + square for part, square in parts.items()}
        has |= set(total)
        for name, gradient in total.items():
            squares[name] += float(gradient.double().square().sum())
    norms = {name: (square / len(batches)) ** 0.5 for name, square in squares.items()}
    reach = {term: {part: (s / len(batches)) ** 0.5 for part, s in parts.items()} for term, parts in reach.items()}
    return Gradients(judge(named, norms, has), reach)


def judge(named: dict[str, torch.nn.Parameter], norms: dict[str, float], has: set[str]) -> list[ParameterGradient]:
    """Each parameter's gradient, held against those of its part.

    Args:
        named: the parameters.
        norms: of their gradients.
        has: those that have one at all.
    """
    densities: dict[str, list[float]] = defaultdict(list)
    for name in has:
        densities[part_of(name)].append(norms[name] / named[name].numel() ** 0.5)
    usual = {part: float(torch.tensor(values).median()) for part, values in densities.items()}
    found = []
    for name, parameter in named.items():
        part, norm, size = part_of(name), float(parameter.detach().double().norm()), parameter.numel()
        gradient = norms[name]
        if name not in has:
            state: State = "none"
        elif not torch.tensor([gradient, norm]).isfinite().all():
            state = "nan"
        elif gradient == 0:
            state = "zero"
        elif gradient < VANISHING * norm and gradient / size**0.5 < VANISHING * usual[part]:
            state = "vanishing"
        else:
            state = "ok"
        found.append(ParameterGradient(name, part, size, norm, gradient, state))
    return found


def _of(loss: Tensor, named: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
