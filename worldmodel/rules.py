"""Update rules: how the hidden state h becomes h_next.

A rule is a pure function `(h, *proposals) -> h_next` on tensors whose last axis is the hidden state. It has no
parameters, so that a comparison of rules compares rules. Its proposals come from the cell (see cells.py). To add
one: write the function, name it in RULES, and in BOUNDS where a bound is proven.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[..., Tensor]


def residual(h: Tensor, candidate: Tensor) -> Tensor:
    """h + u. Nothing bounds it: independent u grow as sqrt(T), aligned u as T, u = eps h as (1 + eps)^T."""
    return h + candidate


def gated(h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """(1 - alpha) h + alpha u with alpha = sigmoid(gate): |h_i| <= max(|h_0,i|, sup |u_i|), which nothing bounds."""
    return torch.lerp(h, candidate, torch.sigmoid(gate))


def gated_norm(h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """As `gated` with u = LayerNorm(candidate), without affine: |h_i| <= max(|h_0,i|, sqrt(D - 1)) for any input.

    An entry of a normalised vector is largest where all others are equal; that vector has entry sqrt(D - 1). The two
    clamps change nothing in exact arithmetic: they keep squares from overflowing, and rounding below the bound.
    """
    dim = candidate.shape[-1]
    bound = math.sqrt(dim - 1)
    normed = F.layer_norm(candidate.clamp(-1e15, 1e15), (dim,)).clamp(-bound, bound)
    return torch.lerp(h, normed, torch.sigmoid(gate))


def direct(h: Tensor, candidate: Tensor) -> Tensor:
    """u alone: no accumulation; what is to be kept must be written anew at every step."""
    return candidate


def unit_norm(h: Tensor, candidate: Tensor) -> Tensor:
    """(h + u) / ||h + u||: on the sphere; the magnitude is lost."""
    return F.normalize(h + candidate, dim=-1)


def gru(h: Tensor, reset: Tensor, keep: Tensor, candidate_x: Tensor, candidate_h: Tensor) -> Tensor:
    """Gated recurrent unit in the form of torch.nn.GRU (Cho et al. 2014, with the reset after the matmul)."""
    candidate = torch.tanh(candidate_x + torch.sigmoid(reset) * candidate_h)
    return torch.lerp(candidate, h, torch.sigmoid(keep))


def lstm(h: Tensor, write: Tensor, keep: Tensor, candidate: Tensor, output: Tensor) -> Tensor:
    """Long short-term memory in the form of torch.nn.LSTM (Gers et al. 2000). `h` packs [hidden, cell], 2D wide."""
    _, cell = h.chunk(2, dim=-1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(candidate)
    return torch.cat([torch.sigmoid(output) * torch.tanh(cell), cell], dim=-1)


RULES: dict[str, Rule] = {
    "residual": residual,
    "gated": gated,
    "gated_norm": gated_norm,
    "direct": direct,
    "unit_norm": unit_norm,
    "gru": gru,
    "lstm": lstm,
}

# The largest |h_i| that a rule allows in D dimensions from a zero start, where that is proven. (An LSTM's cell is not
# bounded: |c_i| <= T.)
BOUNDS: dict[str, Callable[[int], float]] = {
    "gated_norm": lambda dim: math.sqrt(dim - 1),
    "unit_norm": lambda dim: 1.0,
    "gru": lambda dim: 1.0,
}
