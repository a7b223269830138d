"""The update rules of `UpdateCell` with their backward passes written out, for `unroll.py`.

Each is a pair. `forward` takes the buffer of a segment's proposals (T, B, P) and returns a step, (t, h, out), which
writes the next state to `out`, and may overwrite proposals with what the backward pass wants instead: alpha, where the
gate was. `backward` takes the states before the steps (T, B, D), the proposals, the states after the steps, and the
buffer of the proposals' gradients, and returns a `Pull`. Equal to the rule in rules.py under autograd.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel import rules

EPSILON = 1e-5  # of torch's layer_norm
HUGEST = 1e15  # of a candidate that is normalised: see rules.gated_norm

Step = Callable[[int, Tensor, Tensor], object]
# (t, dL/dh_t) -> the part of dL/dh_(t-1) that does not pass through the proposals; None: 0. What passes through them is
# written to the buffer of their gradients.
Pull = Callable[[int, Tensor], Tensor | None]


class ByHand(NamedTuple):
    """A rule's two passes."""

    forward: Callable[[Tensor], Step]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Pull]
    # The candidate is normalised, and its gradient is left with a mean, which the Jacobian of a norm takes away: by
    # `centred` weights within the loop, once for all steps behind it.
    centres: bool = False


def by_step(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The steps of tensors (T, ...), side by side."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _residual(made: Tensor) -> Step:
    steps = made.unbind()
    return lambda t, h, out: torch.add(h, steps[t], out=out)


def _residual_back(before: Tensor, made: Tensor, after: Tensor, of_made: Tensor) -> Pull:
    steps = of_made.unbind()
    return lambda t, g: steps[t].copy_(g)


def _direct(made: Tensor) -> Step:
    steps = made.unbind()
    return lambda t, h, out: out.copy_(steps[t])


def _direct_back(before: Tensor, made: Tensor, after: Tensor, of_made: Tensor) -> Pull:
    steps = of_made.unbind()

    def pull(t: int, g: Tensor) -> None:
        steps[t].copy_(g)

    return pull


def _gated(made: Tensor) -> Step:
    steps = by_step(*made.chunk(2, dim=-1))

    def step(t: int, h: Tensor, out: Tensor) -> None:
        gate, candidate = steps[t]
        torch.lerp(h, candidate, gate.sigmoid_(), out=out)

    return step


def _gated_back(before: Tensor, made: Tensor, after: Tensor, of_made: Tensor) -> Pull:
    alpha, candidate = made.chunk(2, dim=-1)
    keep = 1 - alpha
    by_gate = (candidate - before).mul_(alpha).mul_(keep)
    steps = by_step(by_gate, alpha, keep, *of_made.chunk(2, dim=-1))

    def pull(t: int, g: Tensor) -> Tensor:
        by_gate, by_candidate, keep, of_gate, of_candidate = steps[t]
        torch.mul(g, by_gate, out=of_gate)
        torch.mul(g, by_candidate, out=of_candidate)
        return g * keep

    return pull


def _gated_norm(made: Tensor) -> Step:
    steps, width = by_step(*made.chunk(2, dim=-1)), [made.shape[-1] // 2]
    bound = (width[0] - 1) ** 0.5

    def step(t: int, h: Tensor, out: Tensor) -> None:
        gate, candidate = steps[t]
        # the clamp makes it contiguous, too, which LayerNorm would do else
        normed = torch.native_layer_norm(candidate.clamp(-HUGEST, HUGEST), width, None, None, EPSILON)[0]
        torch.lerp(h, normed.clamp_(-bound, bound), gate.sigmoid_(), out=out)

    return step


def _gated_norm_back(before: Tensor, made: Tensor, after: Tensor, of_made: Tensor) -> Pull:
    alpha, candidate = made.chunk(2, dim=-1)
    width = alpha.shape[-1]
    keep = 1 - alpha
    normed, _, shrink = torch.native_layer_norm(candidate.clamp(-HUGEST, HUGEST), [width], None, None, EPSILON)
    by_gate = (normed - before).mul_(alpha).mul_(keep)
    # the clamps cut nothing that is not zero up to rounding: LayerNorm's Jacobian vanishes at the bound, and is below
    # 1e-13 beyond 1e15
    steps = by_step(by_gate, keep, alpha * shrink, normed, *of_made.chunk(2, dim=-1))

    def pull(t: int, g: Tensor) -> Tensor:
        by_gate, keep, scaled, normed, of_gate, of_candidate = steps[t]
        torch.mul(g, by_gate, out=of_gate)
        through_norm(g * scaled, normed, of_candidate)
        return g * keep

    return pull


def _unit_norm(made: Tensor) -> Step:
    steps = made.unbind()
    return lambda t, h, out: out.copy_(rules.unit_norm(h, steps[t]))


def _unit_norm_back(before: Tensor, made: Tensor, after: Tensor, of_made: Tensor) -> Pull:
    length = (before + made).norm(dim=-1, keepdim=True)
    floor = 1e-12  # of F.normalize; below it the length is a constant
    steps = by_step(after.masked_fill(length < floor, 0.0), length.clamp(min=floor).reciprocal(), of_made)

    def pull(t: int, g: Tensor) -> Tensor:
        radial, shrink, out = steps[t]
        along = (g * radial).sum(dim=-1, keepdim=True)
        return torch.mul(torch.addcmul(g, radial, along, value=-1), shrink, out=out)

    return pull


BY_HAND: dict[rules.Rule, ByHand] = {
    rules.residual: ByHand(_residual, _residual_back),
    rules.gated: ByHand(_gated, _gated_back),
    rules.gated_norm: ByHand(_gated_norm, _gated_norm_back, centres=True),
    rules.direct: ByHand(_direct, _direct_back),
    rules.unit_norm: ByHand(_unit_norm, _unit_norm_back),
}


def through_norm(g: Tensor, normed: Tensor, out: Tensor) -> None:
    """Writes dL/dx of n = (x - mean) / std, but for the removal of its mean, to `out` (B, D).

        dL/dx = g - n mean(g n) - its mean,  g = dL/dn / std

    Args:
        g: (B, D).
        normed: n (B, D).
        out: (B, D).
    """
    torch.addcmul(g, normed, (g * normed).sum(dim=-1, keepdim=True), value=-1 / g.shape[-1], out=out)
