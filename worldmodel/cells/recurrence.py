"""A cell over time: the loop through a segment, and the reference for how an episode's start resets the state."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from worldmodel.cells.fused import fused_states, has_fused
from worldmodel.cells.update import Cell

Unroll = Callable[[Cell, Tensor, Tensor, Tensor], Tensor]  # of a segment, or of one step


def initial_state(cell: Cell, z: Tensor) -> Tensor:
    """The state at an episode's start, zeros (..., D), for the lanes of z (..., T, Z)."""
    # In the parameters' dtype: under autocast z may be in half precision, and the state must not be.
    return z.new_zeros(*z.shape[:-2], cell.state_dim, dtype=next(cell.parameters()).dtype)


def states(
    cell: Cell,
    z: Tensor,
    a: Tensor,
    is_first: Tensor,
    h: Tensor | None = None,
    by_step: bool = False,
    compiled: Unroll | None = None,
) -> Tensor:
    """The states after the steps of a segment, (T, B, D); h is reset to zeros before each frame with `is_first`.

    z (B, T, Z), a (B, T, A), is_first (B, T) bool; h (B, D) is the state before frame 0, None: zeros. Of K members side
    by side, all have their axis in front, and the states are (T, K, B, D). `by_step` uses
    autograd's own backward pass, where the cell has a fused one too: torch.func and second derivatives need it.
    `compiled` is `stepped` with a compiled step, used instead where gradients are wanted.
    """
    zeros = initial_state(cell, z)
    h = zeros if h is None else h.to(zeros.dtype)
    if z.ndim == 3:
        x_TBX = rearrange(cell.project(z, a), "b t x -> t b x")
    else:  # all rows of a member together, as matmuls want them
        rows = (rearrange(part, "k b t x -> k t b x").contiguous() for part in (z, a))
        x_TBX = rearrange(cell.project(*rows), "k t b x -> t k b x")
    segment = x_TBX, h, rearrange(is_first, "... t -> t ...")
    if compiled is not None and not by_step and torch.is_grad_enabled():
        return compiled(cell, *segment)
    if by_step or torch.is_autocast_enabled(z.device.type) or not has_fused(cell):
        return stepped(cell, *segment)
    return fused_states(cell, *segment)


def advance(cell: Cell, x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
    """One step: x (B, X) of `project`, h (B, D), is_first (B,) -> h_next (B, D)."""
    return cell.step(x, h.masked_fill(is_first.unsqueeze(-1), 0.0))


def stepped(cell: Cell, x: Tensor, h: Tensor, is_first: Tensor, step: Unroll = advance) -> Tensor:
    """The states of a segment, one step at a time: x (T, B, X) of `project`, h (B, D), is_first (T, B)."""
    after = []
    for x_t, first_t in zip(x.unbind(), is_first.unbind(), strict=True):
        h = step(cell, x_t, h, first_t)
        after.append(h)
    return torch.stack(after)


def previous_states(h: Tensor, is_first: Tensor, carry: Tensor | None = None) -> Tensor:
    """The state before each step, (B, T, D): h (B, T, D) shifted by one, `carry` first, zeros at resets.

    A carry may hold more after the state: its influence, under exact gradients (rtrl.py).
    """
    first = torch.zeros_like(h[:, 0]) if carry is None else carry[:, : h.shape[-1]].to(h.dtype)
    before = torch.cat([first.unsqueeze(1), h[:, :-1]], dim=1)
    return before.masked_fill(is_first.unsqueeze(-1), 0.0)
