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
