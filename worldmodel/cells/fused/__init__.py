"""Fused passes through time of the cells that have them: a segment with its backward pass, a rollout without one.

autograd runs a matmul for the weights' gradient at each of T steps, and some ten nodes beside it. Here the loops hold
only what must wait for the step before: all else is computed for the whole segment at once, and the weights' gradient
is one matmul over all steps. Results equal those of `recurrence.stepped`, the reference, which serves all other cells,
mixed precision, compilation and torch.func.

`passes` has the rules, `layers` what is around them, `recurrent` a cell's layers in one form; `closed_loop` and
`open_loop` run them.
"""

from worldmodel.cells.fused.closed_loop import fused_states
from worldmodel.cells.fused.open_loop import Feed, fused_rollout
from worldmodel.cells.fused.passes import FUSED
from worldmodel.cells.fused.recurrent import has_fused

__all__ = ["FUSED", "Feed", "fused_rollout", "fused_states", "has_fused"]
