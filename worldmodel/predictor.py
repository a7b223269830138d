"""The latent predictor: a cell, a head, and the two time loops."""

from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel import parts
from worldmodel.cells import Cell, make_cell
from worldmodel.cells.fused import Feed, fused_rollout, has_fused
from worldmodel.cells.own import check_members
from worldmodel.cells.recurrence import Unroll, advance, initial_state, previous_states, states, stepped
from worldmodel.members import by_member, side_by_side
from worldmodel.nets import MLP, StagewiseHead


class _Loop(NamedTuple):
    pred: Tensor  # (B, T, Z): the predicted latent of frame t + 1
    h: Tensor  # (B, T, D): the state after step t
    carry: Tensor  # (B, D): the state after the last step, detached, for the next segment


class ClosedLoop(_Loop):
    """Predictions that saw every observation: a tuple of pred, h and carry, which also knows the states before."""

    is_first: Tensor  # (B, T) bool
    start: Tensor | None  # (B, D): the state before the segment; None: zeros

    def __new__(
        cls, pred: Tensor, h: Tensor, carry: Tensor, is_first: Tensor, start: Tensor | None = None
    ) -> "ClosedLoop":
        loop = super().__new__(cls, pred, h, carry)
        loop.is_first, loop.start = is_first, start
        return loop

    @property
    def before(self) -> Tensor:
        """The state before step t, zeros at resets, (B, T, D)."""
        return previous_states(self.h, self.is_first, self.start)


class OpenLoop(NamedTuple):
    """Predictions that saw their own predictions only."""

    pred: Tensor  # (B, H, Z)
    h: Tensor  # (B, H, D)


class LatentPredictor(nn.Module):
    """Predicts the next latent from the latent z, the action a and a hidden state h under an update rule.

        pred, delta, h_next = predictor(z, h, a)

    Args:
        latent_dim: Z.
        action_dim: A; 0 where there are no actions.
        hidden_dim: width of the hidden state. `state_dim` is the width of the tensor h: the same, but for LSTM (twice),
            stacked GRU and LSTM (times the layers), slots (nine times), triad (40 more), slstm (four times), and all
            whose state is a matrix or a window (cells/matrix.py).
        rule: a name of RULES, or your own, file.py:name (parts.py).
        layers: 1 or 2, of the update network; GRU, LSTM and the rules that see the input alone are stacked.
        gate_bias: initial bias of the gate, for the gated rules.
        head_depth: hidden layers between the state and the prediction; 0: linear.
        tokens: whether the latents are embedded tokens, for cells that treat those differently.
        members: K predictors of one form side by side, each with weights of its own. The lanes of all tensors are then
            those of the first, of the second, ..., (K B, ...).

    Raises:
        UserError: for an unknown rule (naming the nearest) or another number of layers.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden_dim: int,
        rule: str = "gated_norm",
        layers: int = 2,
        gate_bias: float = -1.0,
        head_depth: int = 1,
        tokens: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.members, cells, heads = members, list[Cell](), list[nn.Module]()
        for _ in range(members):
            cell = make_cell(rule, latent_dim + action_dim, hidden_dim, layers, gate_bias, tokens)
            head = MLP(cell.read_dim, latent_dim, hidden_dim, head_depth)
            cells.append(cell)
            heads.append(StagewiseHead(cell.exact_dim, head, latent_dim) if cell.exact_dim else head)
        self.cell, self.head = side_by_side(cells), side_by_side(heads)
        if members > 1 and parts.is_own(rule):
            check_members(rule, self.cell, members, latent_dim + action_dim)
        self._compiled: Unroll | None = None
        self.state_dim = self.cell.state_dim
        self.read_dim = self.cell.read_dim

    def initial_state(self, z: Tensor) -> Tensor:
        """The state at an episode's start, zeros (B, D), for the lanes of z (B, ..., Z)."""
        return initial_state(self.cell, z.view(len(z), 1, -1))

    def exact_prediction(self, h: Tensor) -> Tensor | None:
        """What the cell's exact entries alone predict (..., Z) from states (..., D); None where it has none."""
        return self.head.first(self.cell.read(h)) if isinstance(self.head, StagewiseHead) else None

    def gate(self, z: Tensor, a: Tensor, h: Tensor) -> Tensor | None:
        """The share of each entry that a step from h (..., D) overwrites (..., D); None for a rule without a gate."""
        z, a, h = map(self._apart, (z, a, h))
        gate = self.cell.gate(self.cell.project(z, a), h)
        return None if gate is None else self._lanes(gate)

    def forward(self, z: Tensor, h: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: z (B, Z), h (B, D), a (B, A) -> the next latent (B, Z), h_next - h (B, D), h_next (B, D)."""
        pred, h_next = self.step(z, h, a)
        return pred, h_next - h, h_next

    def step(self, z: Tensor, h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The next latent and state, without the hooks of a module call, which are for calls from outside."""
        z, a, h = map(self._apart, (z, a, h))
        h = self.cell.step(self.cell.project(z, a), h)
        return self._lanes(self.head(self.cell.read(h))), self._lanes(h)

    def _apart(self, x: Tensor) -> Tensor:
        """Lanes (K B, ...) by members, (K, B, ...)."""
        return x if self.members == 1 else by_member(x, self.members)

    def _lanes(self, x: Tensor) -> Tensor:
        """The reverse."""
        return x if self.members == 1 else x.flatten(0, 1)

    def states(self, z: Tensor, a: Tensor, is_first: Tensor, h: Tensor | None = None, by_step: bool = False) -> Tensor:
        """The states of `closed_loop`, (T, B, D), of members (T, K, B, D); see recurrence.states."""
        z, a, is_first = map(self._apart, (z, a, is_first))
        return states(self.cell, z, a, is_first, None if h is None else self._apart(h), by_step, self._compiled)

    def compile_step(self) -> None:
        """In training `closed_loop` uses a step from torch.compile: equal up to rounding.

        Each number of lanes is compiled once, in seconds, whatever the segment's length; compiling the whole loop takes
        more than a minute (docs/speed.md).
        """
        self._compiled = partial(stepped, step=torch.compile(advance, dynamic=False))

    def closed_loop(self, z: Tensor, a: Tensor, is_first: Tensor, h: Tensor | None = None) -> ClosedLoop:
        """Unroll over a segment, seeing z_t at every step. Resets h to zeros before each frame with `is_first`.

        z (B, T, Z), a (B, T, A) where a_t is taken at z_t, is_first (B, T) bool; h (B, D) is the state before frame 0,
        None: zeros. `carry` is detached: its value goes to the next segment, its graph does not. For a gradient through
        time beyond the segment use `h[:, -1]`.
        """
        h_TBD = self.states(z, a, is_first, h)
        carry = self._lanes(h_TBD[-1].detach().clone())  # a view would keep the whole segment alive
        if self.members == 1:
            pred_TBZ = self.head(self.cell.read(h_TBD))
            pred, states = rearrange(pred_TBZ, "t b z -> b t z"), rearrange(h_TBD, "t b d -> b t d")
        else:
            h_KTBD = rearrange(h_TBD, "t k b d -> k t b d")
            pred_KTBZ = self.head(self.cell.read(h_KTBD))
            pred, states = (rearrange(x, "k t b x -> (k b) t x") for x in (pred_KTBZ, h_KTBD))
        return ClosedLoop(pred, states, carry, is_first, h)

    def _fed(self, feed: Feed | None) -> Feed | None:
        """`feed` for predictions and actions by members."""
        if feed is None or self.members == 1:
            return feed
        return lambda pred, a_t: self._apart(feed(self._lanes(pred), self._lanes(a_t)))

    def open_loop(self, z: Tensor, h: Tensor, a: Tensor, feed: Feed | None = None) -> OpenLoop:
        """Roll out H steps from z (B, Z) and the state before it h (B, D) under a (B, H, A), without observations.

        `feed` is asked once a step, in order, what the next one sees after a predicted latent (B, Z) and the action
        (B, A) that led to it; None: that latent.
        """
        plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled(z.device.type)
        if plain and has_fused(self.cell) and a.shape[1]:
            z, h, a = map(self._apart, (z, h, a))
            return OpenLoop(*map(self._lanes, fused_rollout(self.cell, self.head, z, h, a, self._fed(feed))))
        preds, states = [], []
        for a_t in a.unbind(dim=1):
            pred, h = self.step(z, h, a_t)
            z = pred if feed is None else feed(pred, a_t)
            preds.append(pred)
            states.append(h)
        return OpenLoop(torch.stack(preds, dim=1), torch.stack(states, dim=1))
