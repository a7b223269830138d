"""Segments of noise, for benchmarks that need no data."""

from typing import Any

import torch


def segment(
    lanes: int, steps: int, obs_dim: int, action_dim: int, generator: torch.Generator, position: int
) -> dict[str, Any]:
    """A batch that continues the one before it; every lane is one endless episode."""
    is_first = torch.zeros(lanes, steps, dtype=torch.bool)
    is_first[:, 0] = position == 0
    return {
        "obs": torch.randn(lanes, steps + 1, obs_dim, generator=generator),
        "action": torch.randn(lanes, steps, action_dim, generator=generator),
        "reward": torch.zeros(lanes, steps),
        "terminated": torch.zeros(lanes, steps, dtype=torch.bool),
        "is_first": is_first,
        "valid": torch.ones(lanes, steps, dtype=torch.bool),
        "num_valid": torch.tensor(float(lanes * steps)),
        "position": position,
    }
