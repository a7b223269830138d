"""K members of one form side by side: their weights, their lanes, and which data each learns from.

Weights have the members' axis in front (K, ...). Lanes are those of the first member, of the second, ..., (K B, ...).
Outside of a model, latents and states are packed: a row (..., K X) holds all members', or (..., X) what they share.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
SHARE = 1 - math.exp(-1)  # of the episodes, that a bootstrapped member is trained on


def side_by_side(members: Sequence[M]) -> M:
    """The first of modules of one form, with the parameters of all, if there are several."""
    first, *further = members
    if not further:
        return first
    for module, *others in zip(*(member.modules() for member in members), strict=True):
        for name, parameter in list(module.named_parameters(recurse=False)):
            parts = [parameter, *(getattr(other, name) for other in others)]
            setattr(module, name, nn.Parameter(torch.stack([part.detach() for part in parts])))
    return first


def apart(x: Tensor, width: int, members: int) -> Tensor:
    """What all share (B, ..., X), or is packed (B, ..., K X), as lanes (K B, ..., X); X = `width`."""
    if members == 1:
        return x
    parts = x.unflatten(-1, (-1, width)).movedim(-2, 0)
    return parts.expand(members, *parts.shape[1:]).flatten(0, 1)


def packed(x: Tensor, members: int) -> Tensor:
    """Lanes (K B, ..., X) packed, (B, ..., K X)."""
    return x if members == 1 else by_member(x, members).movedim(0, -2).flatten(-2)


def mean(x: Tensor, members: int) -> Tensor:
    """Of the values of lanes (K B, ...), (B, ...)."""
    return x if members == 1 else by_member(x, members).mean(dim=0)


def by_member(x: Tensor, members: int) -> Tensor:
    """Lanes (K B, ...) as (K, B, ...)."""
    return x.unflatten(0, (members, -1))


def shared_out(x: Tensor, members: int) -> Tensor:
    """Rows (N, ...) as lanes, row n that of member n % K."""
    return x if members == 1 else x.unflatten(0, (-1, members)).transpose(0, 1).flatten(0, 1)


def collected(x: Tensor, members: int) -> Tensor:
    """The reverse."""
    return x if members == 1 else by_member(x, members).transpose(0, 1).flatten(0, 1)


def own_share(x: Tensor, width: int, members: int) -> Tensor:
    """As `shared_out`, of rows that share X = `width` entries (N, X) or are packed (N, K X): of each its member's."""
    parts = x.unflatten(-1, (-1, width))
    parts = parts.expand(*parts.shape[:-2], members, width).unflatten(0, (-1, members))  # (N / K, K, K, X)
    return parts.diagonal(dim1=1, dim2=2).movedim(-1, 0).flatten(0, 1)


def bootstrapped(episode: Tensor, members: int) -> Tensor:
    """Which steps each member is trained on (K, B, T) bool: 63% of the episodes (B, T), others for each, for ever.

    So large a part of the data is in a sample of its size that is drawn with replacement (Efron 1979). It is chosen by
    hashing, so that it is the same in every epoch, on every rank and in a resumed run.
    """
    member = torch.arange(1, members + 1, device=episode.device).view(-1, 1, 1)
    mixed = (episode + 1) * 0x9E3779B1 + member * 0x85EBCA77
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)) < SHARE * 2**32
