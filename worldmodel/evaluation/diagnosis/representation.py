"""How many directions latents and states use, and which of their units are dead."""

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 1e-6  # a unit's standard deviation, relative to the root mean square of all


@dataclass(frozen=True)
class Representation:
    dim: int
    effective_rank: float  # 0: constant
    dead: list[int]  # units that do not vary
    spectrum: list[float]  # singular values of the centred vectors, of sum 1, largest first


def representation(values: Tensor) -> Representation | None:
    """Of vectors (N, X), finite; None for fewer than two.

    The effective rank is the exponential of the entropy of the normalised singular values of the centred vectors (Roy &
    Vetterli 2007): n where n directions are used alike.
    """
    if len(values) < 2:
        return None
    values = values.double()
    spread = values.std(dim=0)
    size = values.square().mean().sqrt()
    dead = torch.nonzero(~(spread > DEAD * size)).flatten().tolist()
    dim = values.shape[-1]
    if len(dead) == dim:
        return Representation(dim, 0.0, dead, [])
    squares = torch.linalg.eigvalsh(torch.cov(values.T).reshape(dim, dim)).flip(0)
    singular = squares.where(squares > 1e-12 * squares[0], 0.0).sqrt()  # below it is the rounding of the products
    share = singular / singular.sum()
    rank = float(torch.special.entr(share).sum().exp())
    return Representation(dim, rank, dead, share.tolist())
