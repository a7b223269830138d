"""What a cell proposes to its rule, from its inputs and what it reads of its state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def proposals(
    x: Tensor, seen: Tensor, recurrent: nn.Linear, norm: nn.LayerNorm | None, output: nn.Linear | None
) -> Tensor:
    """One layer: x + W_h seen. Two layers, with a norm and an output: W_o silu(LayerNorm(x + W_h seen)) + b_o.

    x (..., X) is the input's share, W_x [z, a] + b, which does not depend on the state; seen (..., R) is of the state.
    """
    # one operation instead of two where it is a step: rollouts are made of short ones
    made = torch.addmm(x, seen, recurrent.weight.T) if x.ndim == 2 else x + recurrent(seen)
    return made if norm is None or output is None else output(F.silu(norm(made)))
