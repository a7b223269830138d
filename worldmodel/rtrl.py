"""Exact gradients across segments: real-time recurrent learning, for any cell.

A stream is trained segment by segment. Truncated BPTT carries the state h from one segment to the next, without its
graph. Here the carry also holds the state's influence P = dh/dtheta (B, D, P), the derivative with respect to every
parameter that the state depends on, the encoder's and the cell's, through all steps since the lane's last reset:

    within a segment    autograd, through every path there is: states, latents, heads, open-loop rollouts
    at its start        `attach` gives the carried state a gradient: dL/dh_0 . P_0 is added to the parameters'
    at its end          P_T = (dh_T / dh_0) P_0 + dh_T / dtheta, the last with h_0 held still

With segments of one step this is the algorithm of Williams & Zipser (1989, Neural Computation 1). With longer ones it
is that of Schmidhuber (1992, Neural Computation 4): the same gradient, with one update of P for T steps. Note the
order: dL/dh_t meets the influence of t, not that of t + 1.

Exact means: with weights that do not change, the gradients of the segments add up to those of BPTT through the whole
stream. Where an optimizer moves the weights between segments, P holds derivatives taken at the weights of their time.

Time is that of TBPTT plus D backward passes a segment; memory is B D P numbers in the carry and some seven times
that while it is updated. So this is for small models; a cell with a diagonal Jacobian has a cheaper way
(eligibility.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, jacrev, vmap

from worldmodel.errors import UserError
from worldmodel.predictor import LatentPredictor

LARGEST = 2**31  # bytes of influence


class RTRL:
    """Real-time recurrent learning for an encoder and a predictor. The carry packs [h, P], (B, D + D P).

    Args:
        encoder: observations (B, T, ...) -> latents (B, T, Z).
        predictor: with any cell.

    Its parameters are those of `encoder` and of the predictor's cell that require gradients: the states depend on no
    others. It keeps nothing between calls.
    """

    def __init__(self, encoder: nn.Module, predictor: LatentPredictor) -> None:
        self._unroll = _Unroll(encoder, predictor)
        self.params = {
            name: parameter
            for name, parameter in self._unroll.named_parameters()
            if parameter.requires_grad and not name.startswith("predictor.head.")
        }
        self.num_params = sum(parameter.numel() for parameter in self.params.values())
        self.state_dim = predictor.state_dim

    def attach(self, carry: Tensor | None, is_first: Tensor) -> Tensor:
        """The state before a segment, (B, D): its value from the carry, its gradient through the influence.

        Args:
            carry: (B, D + D P), or a state alone (B, D), which had no influence; None: zeros.
            is_first: (B, T) bool.

        Raises:
            UserError: for a carry of another width, or an influence that is too large.
        """
        h, influence = self._unpack(carry, is_first)
        influence = clear(influence, is_first[:, 0])
        sizes = [parameter.numel() for parameter in self.params.values()]

        def pull(gradient: Tensor) -> list[Tensor]:
            parts = torch.einsum("bd,bdp->p", gradient, influence).split(sizes)
            return [part.view_as(p) for part, p in zip(parts, self.params.values(), strict=True)]

        return link(h, pull, *self.params.values())

    def advance(self, carry: Tensor | None, h: Tensor, obs: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """The carry behind a segment, (B, D + D P), without graph. To be called before the weights change.

        Args:
            carry: as `attach` took it.
            h: (B, T, D), the segment's states.
            obs: (B, T, ...), what the encoder takes.
            action: (B, T, A).
            is_first: (B, T) bool.
        """
        start, influence = self._unpack(carry, is_first)
        # Before a lane's last reset there may be anything, a state that overflowed too, and NaN x 0 is NaN.
        cut, over = is_first.any(dim=1), is_over(is_first)
        start, influence = clear(start, cut), clear(influence, cut)
        obs, action = clear(obs.detach(), over), clear(action.detach(), over)
        params = {name: parameter.detach() for name, parameter in self.params.items()}

        def last(params: dict[str, Tensor], start: Tensor, *lane: Tensor) -> Tensor:
            inputs = tuple(x.unsqueeze(0) for x in (*lane, start))
            return functional_call(self._unroll, params, inputs).squeeze(0)

        jacobian = vmap(jacrev(last, argnums=(0, 1)), in_dims=(None, 0, 0, 0, 0))
        by_params, by_start = jacobian(params, start, obs, action, is_first)
        immediate = torch.cat([part.flatten(2) for part in by_params.values()], dim=-1)
        return pack(h[:, -1], torch.baddbmm(immediate, by_start, influence))

    def _unpack(self, carry: Tensor | None, is_first: Tensor) -> tuple[Tensor, Tensor]:
        like = next(iter(self.params.values()))
        lanes, shape = len(is_first), (self.state_dim, self.num_params)
        if (size := lanes * self.state_dim * self.num_params * like.element_size()) > LARGEST:
            raise UserError(
                f"model.gradient rtrl would carry {size / 2**30:.1f} GiB (lanes x state x parameters of encoder and"
                f" cell: {lanes} x {self.state_dim} x {self.num_params}): use a smaller model.hidden_dim, model.width"
                " or data.lanes, or --model.gradient tbptt"
            )
        return unpack(carry, lanes, self.state_dim, shape, like)


class _Unroll(nn.Module):
    """What is differentiated: the state after a segment, (B, D)."""

    def __init__(self, encoder: nn.Module, predictor: LatentPredictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(self, obs: Tensor, action: Tensor, is_first: Tensor, start: Tensor) -> Tensor:
        return self.predictor.states(self.encoder(obs), action, is_first, start, by_step=True)[-1]


def link(h: Tensor, pull: Callable[[Tensor], list[Tensor]], *params: Tensor) -> Tensor:
    """h, bit for bit, with gradients into `params`: `pull` takes dL/dh to one gradient for each.

    Links add up: where h has a graph of its own, it stays.
    """
    return _Link.apply(h, pull, *params)


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, pull: Callable[[Tensor], list[Tensor]], *params: Tensor) -> Tensor:
        ctx.pull = pull
        return h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        return gradient, None, *ctx.pull(gradient)


def is_over(is_first: Tensor) -> Tensor:
    """Which steps (B, T) lie before their lane's last reset in the segment: what is behind it depends on none."""
    return (is_first.flip(1).cumsum(dim=1).flip(1) - is_first.long()) > 0


def clear(x: Tensor, where: Tensor) -> Tensor:
    """x with zeros `where`, a mask of its first axes."""
    return x.masked_fill(where.view(*where.shape, *[1] * (x.ndim - where.ndim)), 0)


def pack(h: Tensor, influence: Tensor) -> Tensor:
    """One tensor (B, D + ...) of a state (B, D) and its influence (B, ...), detached: a carry."""
    return torch.cat([h, influence.flatten(1)], dim=-1).detach()


def unpack(
    carry: Tensor | None, lanes: int, state_dim: int, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor]:
    """The state (B, D) and its influence (B, *shape), in `like`'s dtype; zeros for what the carry does not hold.

    Raises:
        UserError: for a carry that holds something else behind the state.
    """
    h, influence = like.new_zeros(lanes, state_dim), like.new_zeros(lanes, *shape)
    if carry is None:
        return h, influence
    carry = carry.detach().to(like)
    h, rest = carry[:, :state_dim], carry[:, state_dim:]
    if rest.shape[1] and rest.shape[1] != influence[0].numel():
        raise UserError(
            f"the carried state has {carry.shape[1]} entries, of which model.gradient takes"
            f" {state_dim} or {state_dim + influence[0].numel()}: it comes from a run with another model.gradient;"
            " resume with that one"
        )
    return h, rest.view(influence.shape) if rest.shape[1] else influence
