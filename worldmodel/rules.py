"""Update rules: how the hidden state h becomes h_next.

A rule is a pure function `(h, *proposals) -> h_next` on tensors whose last axis is the hidden state. It has no
parameters, so that a comparison of rules compares rules. Its proposals come from the cell (see cells/). To add
one, write the function and name it in RULES, and in BOUNDS where a bound is proven. Those whose state is a matrix or a
window of frames are in matrix_rules.py.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.matrix_rules import attention, gated_delta, mamba2, mlstm

Rule = Callable[..., Tensor]

# A memory of about 1e5 steps; below 1 by more than single precision rounds, so that no rotation grows by rounding.
LARGEST_MODULUS = 1 - 1e-5


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
    """u alone: nothing accumulates; what is to be kept must be written again at every step."""
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


def slots(h: Tensor, gate: Tensor, candidate: Tensor, route: Tensor, query: Tensor, address: Tensor) -> Tensor:
    """Sparse writes into S slots of width D, and one read by attention. `h` packs [slots, last read], (S + 1) D wide.

        i  = argmax(route)                                                  the slot that this step writes, alone
        s_i <- (1 - alpha) s_i + alpha u,  alpha = sigmoid(gate + log p_i + log S),  p = softmax(route)
        r  = sum_j softmax_j(query . s_j / sqrt(D) + address_j) s_j         of the slots after the write

    u = LayerNorm(candidate), as in `gated_norm`. gate, candidate and query are D wide, route and address S. A slot that
    is not written keeps its value bit for bit: it is selected, not multiplied by zero. The router's gradient is exact
    wherever i does not change, and reaches the scores of all slots: the surer the choice, the stronger the write.
    A written slot stays under gated_norm's bound, a read is a mean of slots: |h_i| <= sqrt(D - 1) for any input.
    """
    count, dim = route.shape[-1], candidate.shape[-1]
    memory = h[..., :-dim].unflatten(-1, (count, dim))
    written = gated_norm(memory, write_gate(gate, route).unsqueeze(-2), candidate.unsqueeze(-2))
    chosen = torch.arange(count, device=h.device) == route.argmax(dim=-1, keepdim=True)
    memory = torch.where(chosen.unsqueeze(-1), written, memory)
    match = (query.clamp(-1e15, 1e15).unsqueeze(-2) * memory).sum(dim=-1) / math.sqrt(dim)
    read = (torch.softmax(match + address.clamp(-1e15, 1e15), dim=-1).unsqueeze(-1) * memory).sum(dim=-2)
    return torch.cat([memory.flatten(-2), read], dim=-1)


def write_gate(gate: Tensor, route: Tensor) -> Tensor:
    """The logit of alpha in `slots`, (..., D): `gate` itself where the router does not prefer any of its S slots."""
    surest = torch.log_softmax(route.clamp(-1e15, 1e15), dim=-1).amax(dim=-1, keepdim=True)
    return gate + surest + math.log(route.shape[-1])


def triad(
    h: Tensor, gate: Tensor, candidate: Tensor, increment: Tensor, write: Tensor, value: Tensor, later: Tensor
) -> Tensor:
    """Gated channels, counters and latches. `h` packs [gated, counters, latches, pending].

        m' = gated_norm(m, gate, candidate)
        c' = c + increment                       increment in {-1, 0, 1}: see `ternary`
        l' = v if w else l,  w = [write + pending_w > 0],  v = tanh(value + pending_v)
        pending' = later

    `write` and `value` are this input's share of the latches' proposals, `later` its share of both at the next step, so
    that w and v depend on two inputs in a row. The gradient of w is the sigmoid's (straight-through, Bengio et al.
    2013). Counters are exact up to 2^24 in float32; a latch that is not written keeps its value bit for bit. |l| <= 1,
    |m_i| <= sqrt(D - 1); c is not bounded, so readers see it through saturating features only (cells/triad.py).
    """
    latches = write.shape[-1]
    gated_part, counters, held, pending = h.split(
        [candidate.shape[-1], increment.shape[-1], latches, 2 * latches], dim=-1
    )
    pending_write, pending_value = pending.chunk(2, dim=-1)
    soft = torch.sigmoid(write + pending_write)
    # lerp gives exactly its ends at the weights 0 and 1
    held = torch.lerp(held, torch.tanh(value + pending_value), straight_through((soft > 0.5).to(soft.dtype), soft))
    return torch.cat([gated_norm(gated_part, gate, candidate), counters + increment, held, later], dim=-1)


def diagonal(h: Tensor, keep: Tensor, angle: Tensor, candidate: Tensor) -> Tensor:
    """lambda h + (1 - |lambda|) tanh(candidate), lambda = r exp(i angle), r = (1 - 1e-5) sigmoid(keep).

    h and candidate (..., D) pack D/2 complex numbers, [real, imaginary]; keep and angle are (..., D/2). A convex
    combination in modulus: |h_k| <= max(|h_0,k|, sqrt(2)) for any input, so no entry leaves [-sqrt(2), sqrt(2)] from
    a zero start.
    """
    return turned(h, LARGEST_MODULUS * torch.sigmoid(keep), angle) + twice(overwritten(keep)) * torch.tanh(candidate)


def overwritten(keep: Tensor) -> Tensor:
    """1 - |lambda|, without cancellation where |lambda| is near 1."""
    return (1 - LARGEST_MODULUS) + LARGEST_MODULUS * torch.sigmoid(-keep)


def turned(h: Tensor, modulus: Tensor, angle: Tensor) -> Tensor:
    """modulus exp(i angle) h, of complex numbers that h packs as [real, imaginary]."""
    real, imaginary = modulus * torch.cos(angle), modulus * torch.sin(angle)
    h_real, h_imaginary = h.chunk(2, dim=-1)
    return torch.cat([real * h_real - imaginary * h_imaginary, imaginary * h_real + real * h_imaginary], dim=-1)


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=-1)


def lru(h: Tensor, decay: Tensor, angle: Tensor, scale: Tensor, drive: Tensor) -> Tensor:
    """Linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349).

        lambda = exp(-exp(decay) + i exp(angle))
        h' = lambda h + exp(scale) drive

    h and drive (..., D) pack D/2 complex numbers, [real, imaginary]; decay, angle and scale (D/2,) are parameters, so
    that lambda is the same at every step, and |lambda| < 1 whatever they are. |h_k| <= exp(scale) sup |drive_k| /
    (1 - |lambda|) from zeros, and nothing bounds the drive. A linear filter of its inputs: it cannot forget when told
    to, nor gate what it takes in.
    """
    return turned(h, torch.exp(-torch.exp(decay)), torch.exp(angle)) + twice(torch.exp(scale)) * drive


def mingru(h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """`gated` with gate and candidate from the input alone: minGRU (Feng et al. 2024, arXiv 2410.01201).

    Affine in h with eigenvalues in (0, 1): it decays, and can neither rotate nor change sign, so neither an oscillator
    nor parity is within its reach (Grazzi et al. 2024, arXiv 2411.12537). |h_i| <= max(|h_0,i|, sup |u_i|).
    """
    return gated(h, gate, candidate)


def slstm(h: Tensor, write: Tensor, keep: Tensor, candidate: Tensor, output: Tensor) -> Tensor:
    """xLSTM's scalar memory with exponential input gates (Beck et al. 2024, arXiv 2405.04517).

        c' = f c + i tanh(candidate),  n' = f n + i,  i = exp(write),  f = sigmoid(keep)
        hidden' = sigmoid(output) c' / n'

    `h` packs [hidden, c, n, m], 4D wide. c and n are stored as exp(-m) c and exp(-m) n with m' = max(log f + m, write),
    so that no exponential overflows; see `slstm_gates`. |hidden_i| <= 1, since c / n is a mean of tanh's; n and m are
    not bounded. Its proposals see the hidden vector: nonlinear in time, it tracks parity, and is not a scan.
    """
    _, cell, norm, peak = h.chunk(4, dim=-1)
    written, kept, peak = slstm_gates(write, keep, norm, peak)
    cell, norm = kept * cell + written * torch.tanh(candidate), kept * norm + written
    return torch.cat([torch.sigmoid(output) * cell / norm, cell, norm, peak], dim=-1)


def slstm_gates(write: Tensor, keep: Tensor, norm: Tensor, peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(write - m'), exp(log f + m - m') and m', each (..., D), from n and m before.

    One of the two is always 1. So n >= 1 from the first step on, and n = 0 says that there was none: m then is not 0,
    as in the zeros of an episode's start, but minus infinity, and the first input is all that the state holds.
    """
    log_keep = torch.where(norm == 0, -math.inf, F.logsigmoid(keep) + peak)
    peak = torch.maximum(log_keep, write)
    return torch.exp(write - peak), torch.exp(log_keep - peak), peak


def ternary(u: Tensor) -> Tensor:
    """u rounded to -1, 0 or 1, with the gradient of u: an increment can always be learned to change."""
    return straight_through(u.clamp(-1, 1).round(), u)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (Bengio et al. 2013, arXiv 1308.3432)."""
    return hard.detach() + (soft - soft.detach())


RULES: dict[str, Rule] = {
    "residual": residual,
    "gated": gated,
    "gated_norm": gated_norm,
    "direct": direct,
    "unit_norm": unit_norm,
    "gru": gru,
    "lstm": lstm,
    "diagonal": diagonal,
    "slots": slots,
    "triad": triad,
    "lru": lru,
    "mingru": mingru,
    "mamba2": mamba2,
    "gated_delta": gated_delta,
    "mlstm": mlstm,
    "slstm": slstm,
    "attention": attention,
}

# The largest |h_i| that a rule allows in D dimensions from a zero start, where that is proven. (An LSTM's cell is not
# bounded, |c_i| <= T, nor are triad's counters. Slots of width D have gated_norm's bound.)
BOUNDS: dict[str, Callable[[int], float]] = {
    "gated_norm": lambda dim: math.sqrt(dim - 1),
    "unit_norm": lambda dim: 1.0,
    "gru": lambda dim: 1.0,
    "diagonal": lambda dim: math.sqrt(2),
    "slots": lambda dim: math.sqrt(dim - 1),
}
