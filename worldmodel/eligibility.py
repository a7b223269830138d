"""Exact gradients across segments at the cost of the parameters, for the cell with a diagonal state Jacobian.

The influence of RTRL (rtrl.py) is D x P because every parameter may move every state. In `Diagonal` a row of the last
layer moves one complex number only, and that number moves no other. What is left of P is a trace for each pair of a
state and a parameter of its own rows, twice as many numbers as the last layer has parameters, on streams of any length:

    e_t = lambda_t e_(t-1) + (dh_t / dproposals_t) (x) features_t

(Mozer 1989, Complex Systems 3; Zucchet et al. 2023, arXiv 2305.15947.) Over a segment that is one sum, each term
turned by the lambdas behind it.

Exact, across any number of segments: the gradient of the cell's last layer, with one layer all that the cell has.
What stands before it, the cell's first layer of two and the encoder, has the gradient of truncated BPTT: exact within
the segment and cut at its start, since each of its parameters moves every state. Where that matters use RTRL, which is
exact for everything, at its price.
"""

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel.cells.diagonal import Diagonal
from worldmodel.cells.recurrence import previous_states
from worldmodel.errors import UserError
from worldmodel.predictor import LatentPredictor
from worldmodel.rtrl import clear, is_over, link, pack, unpack

PROPOSALS = 4  # a complex number has: keep, angle, and the candidate's two entries


class Eligibility:
    """Eligibility traces for a predictor with the cell `Diagonal`, with the interface of RTRL.

    The carry packs [h, traces], (B, D + D 4 (F + 1)), with F features of the last layer, and its bias.

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
        """The state before a segment, (B, D): its value from the carry, its gradient through the traces.

        Args:
            carry: (B, D + D 4 (F + 1)), or a state alone (B, D), which had no traces; None: zeros.
            is_first: (B, T) bool.

        Raises:
            UserError: for a carry of another width.
        """
        h, traces = self._unpack(carry, is_first)
        traces = clear(traces, is_first[:, 0])

        def pull(gradient: Tensor) -> list[Tensor]:
            rows = torch.einsum("bcn,bncjf->jnf", gradient.unflatten(1, (2, -1)), traces).flatten(0, 1)
            return [rows[:, :-1], rows[:, -1]]

        return link(h, pull, self.cell.output.weight, self.cell.output.bias)

    def advance(self, carry: Tensor | None, h: Tensor, obs: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """The carry behind a segment, without graph. To be called before the weights change.

        Args:
            carry: as `attach` took it.
            h: (B, T, D), the segment's states.
            obs: (B, T, ...), what the encoder takes.
            action: (B, T, A).
            is_first: (B, T) bool.
        """
        start, traces = self._unpack(carry, is_first)
        h, over = h.detach(), is_over(is_first)
        with torch.no_grad():
            features = self.cell.features(self.encoder(obs), action).to(h.dtype)
        by_proposals, by_state = self._jacobians(features, previous_states(h, is_first, start))
        # before a lane's last reset there may be anything, and NaN x 0 is NaN
        by_proposals, features = clear(by_proposals, over), clear(features, over)
        by_state = clear(by_state, over)
        onward = torch.eye(2).to(h).expand(by_state[:, 0].shape)  # dh_T / dh_t, from the last step backwards
        reached = []
        for block in reversed(by_state.unbind(dim=1)):
            reached.append(onward)
            onward = onward @ block
        by_proposals = torch.stack(reached[::-1], dim=1) @ by_proposals
        by_features = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
        added = torch.einsum("btncj,btf->bncjf", by_proposals, by_features)
        kept = onward @ clear(traces, is_first.any(dim=1)).flatten(3)
        return pack(h[:, -1], added + kept.unflatten(3, added.shape[3:]))

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
        return unpack(carry, len(is_first), self.cell.state_dim, self._shape, weight)
