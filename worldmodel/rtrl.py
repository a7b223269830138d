"""Exact gradients across segments: real-time recurrent learning, for any cell, and eligibility traces, for one.

A stream is trained segment by segment. Truncated BPTT carries the state h from one segment to the next, without its
graph. Here the carry also holds the state's influence P = dh/dtheta (B, D, P), the derivative with respect to every
parameter that the state depends on, the encoder's and the cell's, through all steps since the lane's last reset:

    within a segment    autograd, through every path there is: states, latents, heads, open-loop rollouts
    at its start        `attach` gives the carried state a gradient: dL/dh_0 . P_0 is added to the parameters'
    at its end          P_T = (dh_T / dh_0) P_0 + dh_T / dtheta, the latter with h_0 held constant

With segments of one step this is the algorithm of Williams & Zipser (1989, Neural Computation 1); with longer ones it
is that of Schmidhuber (1992, Neural Computation 4): the same gradient, with one update of P for T steps. Note the
order: dL/dh_t meets the influence of t, not that of t + 1.

Exact means: with weights that do not change, the gradients of the segments add up to those of BPTT through the whole
stream. Where an optimizer moves the weights between segments, P holds derivatives taken at earlier weights.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, jacrev, vmap

from worldmodel.cells.diagonal import Diagonal
from worldmodel.cells.recurrence import previous_states
from worldmodel.errors import UserError
from worldmodel.predictor import LatentPredictor

LARGEST = 2**31  # bytes of influence
PROPOSALS = 4  # of a complex number in Diagonal: keep, angle, and the candidate's two entries


class RTRL:
    """Real-time recurrent learning for an encoder and a predictor with any cell. The carry packs [h, P], (B, D + D P).

    Its parameters are those of the encoder and of the predictor's cell that require gradients: the states depend on no
    others. It keeps nothing between calls. Time is that of TBPTT plus D backward passes a segment; memory is B D P
    numbers in the carry, and some seven times that during the update: for small models.
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

        `carry` is that of `advance`, or a state alone (B, D), which had no influence; None: zeros. A carry of another
        width, or an influence that is too large, raises UserError.
        """
        h, influence = self._unpack(carry, is_first)
        influence = _clear(influence, is_first[:, 0])
        sizes = [parameter.numel() for parameter in self.params.values()]

        def pull(gradient: Tensor) -> list[Tensor]:
            parts = torch.einsum("bd,bdp->p", gradient, influence).split(sizes)
            return [part.view_as(p) for part, p in zip(parts, self.params.values(), strict=True)]

        return _Link.apply(h, pull, *self.params.values())

    def advance(self, carry: Tensor | None, h: Tensor, obs: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """The carry after a segment, without graph; call it before the weights change.

        `carry` as `attach` took it, the segment's states h (B, T, D), obs (B, T, ...) as the encoder takes it, action
        (B, T, A), is_first (B, T) bool.
        """
        start, influence = self._unpack(carry, is_first)
        # Before a lane's last reset there may be anything, such as a state that overflowed, and NaN x 0 is NaN.
        cut, over = is_first.any(dim=1), _is_over(is_first)
        start, influence = _clear(start, cut), _clear(influence, cut)
        obs, action = _clear(obs.detach(), over), _clear(action.detach(), over)
        params = {name: parameter.detach() for name, parameter in self.params.items()}

        def last(params: dict[str, Tensor], start: Tensor, *lane: Tensor) -> Tensor:
            inputs = tuple(x.unsqueeze(0) for x in (*lane, start))
            return functional_call(self._unroll, params, inputs).squeeze(0)

        jacobian = vmap(jacrev(last, argnums=(0, 1)), in_dims=(None, 0, 0, 0, 0))
        by_params, by_start = jacobian(params, start, obs, action, is_first)
        immediate = torch.cat([part.flatten(2) for part in by_params.values()], dim=-1)
        return _pack(h[:, -1], torch.baddbmm(immediate, by_start, influence))

    def _unpack(self, carry: Tensor | None, is_first: Tensor) -> tuple[Tensor, Tensor]:
        like = next(iter(self.params.values()))
        lanes, shape = len(is_first), (self.state_dim, self.num_params)
        if (size := lanes * self.state_dim * self.num_params * like.element_size()) > LARGEST:
            raise UserError(
                f"model.gradient rtrl would carry {size / 2**30:.1f} GiB (lanes x state x parameters of encoder and"
                f" cell: {lanes} x {self.state_dim} x {self.num_params}): use a smaller model.hidden_dim, model.width"
                " or data.lanes, or --model.gradient tbptt"
            )
        return _unpack(carry, lanes, self.state_dim, shape, like)


class _Unroll(nn.Module):
    """What is differentiated: the state after a segment, (B, D)."""

    def __init__(self, encoder: nn.Module, predictor: LatentPredictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(self, obs: Tensor, action: Tensor, is_first: Tensor, start: Tensor) -> Tensor:
        return self.predictor.states(self.encoder(obs), action, is_first, start, by_step=True)[-1]


class Eligibility:
    """Eligibility traces for a predictor with the cell `Diagonal`: RTRL's interface at the cost of the parameters.

    RTRL's influence is D x P because every parameter may move every state. In `Diagonal` a row of the last layer moves
    one complex number only, and that number moves no other. What is left of P is a trace for each pair of a state and a
    parameter of its own rows, twice as many numbers as the last layer has parameters, on streams of any length:

        e_t = lambda_t e_(t-1) + (dh_t / dproposals_t) (x) features_t

    (Mozer 1989, Complex Systems 3; Zucchet et al. 2023, arXiv 2305.15947), summed over a segment at once.

    Exact across any number of segments for the cell's last layer, which is the whole cell where it has one layer. What
    comes before it, the first layer of two and the encoder, gets the gradient of truncated BPTT, cut at the segment's
    start, since each of its parameters moves every state. The carry packs [h, traces], (B, D + D 4 (F + 1)), with F
    features of the last layer, and its bias.

    Raises:
        UserError: for a predictor with another cell.
    """

    def __init__(self, encoder: nn.Module, predictor: LatentPredictor) -> None:
        cell: nn.Module = predictor.cell
        if not isinstance(cell, Diagonal):
            raise UserError("model.gradient eligibility is for --model.rule diagonal: use --model.gradient rtrl")
        self.encoder, self.cell = encoder, cell
        self._shape = cell.units, 2, PROPOSALS, cell.output.in_features + 1

    def attach(self, carry: Tensor | None, is_first: Tensor) -> Tensor:
        """As RTRL does, through the traces."""
        h, traces = self._unpack(carry, is_first)
        traces = _clear(traces, is_first[:, 0])

        def pull(gradient: Tensor) -> list[Tensor]:
            rows = torch.einsum("bcn,bncjf->jnf", gradient.unflatten(1, (2, -1)), traces).flatten(0, 1)
            return [rows[:, :-1], rows[:, -1]]

        return _Link.apply(h, pull, self.cell.output.weight, self.cell.output.bias)

    def advance(self, carry: Tensor | None, h: Tensor, obs: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """As RTRL does."""
        start, traces = self._unpack(carry, is_first)
        h, over = h.detach(), _is_over(is_first)
        with torch.no_grad():
            features = self.cell.features(self.encoder(obs), action).to(h.dtype)
        by_proposals, by_state = self._jacobians(features, previous_states(h, is_first, start))
        # as in RTRL: before a lane's last reset there may be anything
        by_proposals, by_state, features = (_clear(x, over) for x in (by_proposals, by_state, features))
        onward = torch.eye(2).to(h).expand(by_state[:, 0].shape)  # dh_T / dh_t, from the last step backwards
        products = []
        for block in reversed(by_state.unbind(dim=1)):
            products.append(onward)
            onward = onward @ block
        by_proposals = torch.stack(products[::-1], dim=1) @ by_proposals
        by_features = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
        added = torch.einsum("btncj,btf->bncjf", by_proposals, by_features)
        kept = onward @ _clear(traces, is_first.any(dim=1)).flatten(3)
        return _pack(h[:, -1], added + kept.unflatten(3, added.shape[3:]))

    def _jacobians(self, features: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Of each step, with respect to its proposals (B, T, n, 2, 4) and to the state before it (B, T, n, 2, 2).

        A complex number depends on its own proposals and its own past only, so two backward passes, of the sums of
        all real and of all imaginary parts, give every block.
        """
        with torch.enable_grad():
            x = self.cell.output(features).detach().to(before.dtype).requires_grad_()
            before = before.detach().requires_grad_()
            real, imaginary = self.cell.step(x, before).chunk(2, dim=-1)
            of_real = torch.autograd.grad(real.sum(), (x, before), retain_graph=True)
            of_imaginary = torch.autograd.grad(imaginary.sum(), (x, before))
        by_proposals, by_state = map(torch.stack, zip(of_real, of_imaginary, strict=True))  # (2, B, T, ...)
        return (
            rearrange(by_proposals, "c b t (j n) -> b t n c j", j=PROPOSALS),
            rearrange(by_state, "c b t (d n) -> b t n c d", d=2),
        )

    def _unpack(self, carry: Tensor | None, is_first: Tensor) -> tuple[Tensor, Tensor]:
        weight = cast(Tensor, self.cell.output.weight)
        return _unpack(carry, len(is_first), self.cell.state_dim, self._shape, weight)


class _Link(torch.autograd.Function):
    """h, bit for bit, with gradients into parameters: `pull` takes dL/dh to one gradient for each.

    Links add up: where h has a graph of its own, it stays.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, pull: Callable[[Tensor], list[Tensor]], *params: Tensor) -> Tensor:
        ctx.pull = pull
        return h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        return gradient, None, *ctx.pull(gradient)


def _is_over(is_first: Tensor) -> Tensor:
    """Which steps (B, T) lie before their lane's last reset in the segment: what comes after it depends on none."""
    return (is_first.flip(1).cumsum(dim=1).flip(1) - is_first.long()) > 0


def _clear(x: Tensor, where: Tensor) -> Tensor:
    """x with zeros `where`, a mask of its first axes."""
    return x.masked_fill(where.view(*where.shape, *[1] * (x.ndim - where.ndim)), 0)


def _pack(h: Tensor, influence: Tensor) -> Tensor:
    """One tensor (B, D + ...) of a state (B, D) and its influence (B, ...), detached: a carry."""
    return torch.cat([h, influence.flatten(1)], dim=-1).detach()


def _unpack(
    carry: Tensor | None, lanes: int, state_dim: int, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor]:
    """The state (B, D) and its influence (B, *shape), in `like`'s dtype; zeros for what the carry does not hold."""
    h, influence = like.new_zeros(lanes, state_dim), like.new_zeros(lanes, *shape)
    if carry is None:
        return h, influence
    carry = carry.detach().to(like)
    h, rest = carry[:, :state_dim], carry[:, state_dim:]
    if rest.shape[1] and rest.shape[1] != influence[0].numel():
        raise UserError(
            f"the carried state has {carry.shape[1]} entries, and model.gradient takes"
            f" {state_dim} or {state_dim + influence[0].numel()}: it comes from a run with another model.gradient;"
            " resume with that one"
        )
    return h, rest.view(influence.shape) if rest.shape[1] else influence
