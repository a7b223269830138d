"""How large each parameter's gradient is, and which term of the loss reaches which part of the model."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.table import Table
from torch import Tensor

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.measurement import BLUE, Finding, Measurement, Subject, table

State = Literal["ok", "none", "zero", "nan", "vanishing"]

# A gradient below this, relative to the parameter's norm and, entry for entry, to the median of its part of the model:
# AdamW divides by the gradient's own size, but float32 has lost it in the sum of the loss's other gradients.
VANISHING = 1e-6
NAMED = 4  # parameters named in a finding

# Kind and weight of the finding, the usual cause, and what to change.
FAULTS: dict[State, tuple[str, int, str, str]] = {
    "nan": ("not finite", 100, "the parameter or the data holds NaN or infinity, or the state overflows",
            "a look at the data (worldmodel data check), a lower --model.learning_rate"),
    "none": ("no gradient", 90, "no term of the loss depends on it: a hard choice (argmax, top-k, a comparison) or a"
             " detach stands in the way, or its output is not used",
             "weight the choice by a soft gate or pass its gradient straight through, or remove it"),
    "zero": ("zero gradient", 85, "its output is multiplied by zero, or feeds units that are dead or saturated",
             "start it elsewhere, or remove it"),
    "vanishing": ("vanishing gradient", 30, "its cause is saturated gates or activations, or a weight of nearly zero",
                  "--model.gate_bias nearer to 0, --model.layers 1, or other first weights"),
}  # fmt: skip


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
class Gradients(Measurement):
    """Of the loss on each batch, with the state carried from batch to batch as in training."""

    parameters: list[ParameterGradient]
    reach: dict[str, dict[str, float]]  # term -> part -> norm of the weighted term's gradient; absent where it has none

    key = "gradients"
    panel = "each parameter's gradient", "root mean square of the gradient's entries", ""

    @classmethod
    def measure(cls, subject: Subject) -> "Gradients":
        model, batches = subject.model, subject.batches
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        squares: dict[str, float] = {}  # of the gradients that exist
        reach: dict[str, dict[str, float]] = {term: {} for term in model.weights}
        state: Tensor | None = None
        for batch in batches:
            carried = batch if state is None or not subject.carry else cast(Batch, {**batch, "carry": state})
            terms, _, state = model.losses(carried)
            total: dict[str, Tensor] = {}
            for term, weight in model.weights.items():
                for name, gradient in _of(weight * terms[term], named).items():
                    total[name] = gradient + total[name] if name in total else gradient
                    part = part_of(name)
                    reach[term][part] = reach[term].get(part, 0.0) + float(gradient.double().square().sum())
            for name, gradient in total.items():
                squares[name] = squares.get(name, 0.0) + float(gradient.double().square().sum())
        norms = {name: (square / len(batches)) ** 0.5 for name, square in squares.items()}
        reach = {term: {part: (s / len(batches)) ** 0.5 for part, s in parts.items()} for term, parts in reach.items()}
        return cls(_judged(named, norms), reach)

    def tables(self) -> list[Table]:
        headings = ["part", "parameters", "median ‖g‖ / ‖θ‖", "least", "without", "zero", "NaN", "vanishing"]
        sizes, parts = table("Gradients", headings), self._by_part()
        for part, some in parts.items():
            ratios = [p.gradient / p.norm for p in some if p.state in ("ok", "vanishing") and p.norm > 0]
            median, least = (f"{statistics.median(ratios):.1e}", f"{min(ratios):.1e}") if ratios else ("–", "–")
            counts = [sum(p.state == state for p in some) for state in ("none", "zero", "nan", "vanishing")]
            sizes.add_row(part, str(len(some)), median, least, *(str(n) if n else "–" for n in counts))
        terms = table("Which loss trains what: norm of the weighted term's gradient", ["term", *parts])
        for term, norms in self.reach.items():
            terms.add_row(term, *(f"{norms[part]:.1e}" if part in norms else "–" for part in parts))
        return [sizes, terms]

    def draw(self, axes: Axes, subject: Subject) -> None:
        parts = self._by_part()
        for i, some in enumerate(parts.values()):
            values = [p.gradient / p.size**0.5 for p in some if math.isfinite(p.gradient) and p.gradient > 0]
            axes.plot(values, np.full(len(values), i), "o", color=BLUE, alpha=0.6)
        axes.set_yticks(range(len(parts)), list(parts))
        axes.set_xscale("log")

    def findings(self, subject: Subject) -> Iterator[Finding]:
        if names := [p.name for p in self.parameters if not math.isfinite(p.norm)]:
            yield Finding(
                "not finite",
                100,
                f"{_listed(names)} {'holds' if len(names) == 1 else 'hold'} NaN or infinity",
                "everything that is computed from it is NaN; nothing else was measured",
                "go back to an earlier checkpoint; --trainer.gradient_clip_val 1 or less,"
                " a lower --model.learning_rate",
            )
            return
        for state, (kind, weight, cause, change) in FAULTS.items():
            if some := [p for p in self.parameters if p.state == state]:
                largest = f"vanishing ({max(p.gradient for p in some):.1e} at most)"
                how = {"none": "none", "zero": "exactly zero", "nan": "NaN or infinite"}.get(state, largest)
                seen = f"{_listed([p.name for p in some])}: gradient {how}"
                yield Finding(kind, weight, seen, f"likely, {cause}", change)
        if terms := self._past_encoder():
            trains = "trains" if len(terms) == 1 else "train"
            yield Finding(
                "detached encoder",
                80,
                f"{_listed(terms)} {trains} the recurrence, and the encoder gets no gradient",
                "latents are not shaped by what is to be predicted: they are cut from the graph on their way"
                " (.detach())",
                "feed the recurrence with the encoder's own output",
            )

    def _by_part(self) -> dict[str, list[ParameterGradient]]:
        parts: dict[str, list[ParameterGradient]] = defaultdict(list)
        for p in self.parameters:
            parts[p.part].append(p)
        return parts

    def _past_encoder(self) -> list[str]:
        """Terms that train the recurrence, and do not reach the encoder whose latents it is fed with."""
        if not any(p.part == "encoder" for p in self.parameters):
            return []
        return [t for t, parts in self.reach.items() if parts.get("predictor.cell") and not parts.get("encoder")]


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: encoder, predictor.cell, predictor.head, decoder, ..."""
    words = name.split(".")
    return ".".join(words[:2] if words[0] == "predictor" else words[:1])


def _of(loss: Tensor, named: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    if not loss.requires_grad:
        return {}
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def _judged(named: dict[str, torch.nn.Parameter], norms: dict[str, float]) -> list[ParameterGradient]:
    """Each parameter's gradient, held against those of its part; `norms` are of the gradients that exist."""
    densities: dict[str, list[float]] = defaultdict(list)
    for name, norm in norms.items():
        densities[part_of(name)].append(norm / named[name].numel() ** 0.5)
    usual = {part: float(torch.tensor(values).median()) for part, values in densities.items()}
    judged = []
    for name, parameter in named.items():
        part, norm, size = part_of(name), float(parameter.detach().double().norm()), parameter.numel()
        gradient, state = norms.get(name, 0.0), cast(State, "ok")
        if name not in norms:
            state = "none"
        elif not (math.isfinite(gradient) and math.isfinite(norm)):
            state = "nan"
        elif gradient == 0:
            state = "zero"
        elif gradient < VANISHING * norm and gradient / size**0.5 < VANISHING * usual[part]:
            state = "vanishing"
        judged.append(ParameterGradient(name, part, size, norm, gradient, state))
    return judged


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
