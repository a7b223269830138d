"""Affine normalisation whose statistics travel in the checkpoint."""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """(x - mean) / scale and back, entry by entry; the identity until `fit` is called."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take statistics (dim,) each. An entry that hardly varies keeps its scale, so that noise is not blown up."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).to(self.mean.dtype)  # in half or double precision, the module's

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.mean


class RunningNormalizer(Normalizer):
    """Statistics that grow with the data: of all batches so far, each counting alike, or the last ones more.

    Args:
        dim: entries.
        least: the share that a new batch has at least; 0: 1 / n, of n batches.
    """

    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, least: float = 0.0) -> None:
        super().__init__(dim)
        self.least = least
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor, entries: Tensor | None = None) -> None:
        """Take in x (..., dim) where `valid` (...); `entries` (dim,) bool, which have a scale (None: all)."""
        rows = x[valid].to(self.mean.dtype)
        if not len(rows):
            return
        self.batches += 1
        share = (1 / self.batches).clamp(min=self.least).to(self.mean.dtype)
        mean = rows.mean(dim=0)
        moved = mean - self.mean
        within, between = rows.var(dim=0, unbiased=False), share * (1 - share) * moved.square()
        variance = (1 - share) * self.variance + share * within + between
        mean = self.mean + share * moved
        if entries is not None:
            mean, variance = torch.where(entries, mean, 0.0), torch.where(entries, variance, 1.0)
        self.variance.copy_(variance)
        self.fit(mean, variance.sqrt())
