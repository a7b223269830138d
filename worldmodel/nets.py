"""Feed-forward networks: encoders, decoders, heads."""

from torch import nn


def mlp(input_dim: int, output_dim: int, width: int, depth: int) -> nn.Sequential:
    """`depth` blocks of Linear, LayerNorm, SiLU, then a Linear: (..., input_dim) -> (..., output_dim).

    With depth 0 it is the Linear alone.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(input_dim, width), nn.LayerNorm(width), nn.SiLU()]
        input_dim = width
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))
