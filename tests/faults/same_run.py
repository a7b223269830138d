"""Compares two runs bit for bit: weights, moments, carried states, generators, counters, all logged numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def leaves(x: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a checkpoint, with its path."""
    if isinstance(x, dict):
        for key, value in x.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(x, list | tuple):
        for i, value in enumerate(x):
            yield from leaves(value, f"{name}.{i}")
    else:
        yield name, x


def differences(run: Path, expected: Path) -> list[str]:
    """The names of what differs between two runs' last checkpoints and files."""
    values, wanted = (
        dict(leaves(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True))) for folder in (run, expected)
    )
    differ = sorted(values.keys() ^ wanted.keys())
    for name in values.keys() & wanted.keys():
        one, other = values[name], wanted[name]
        if not (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other):
            differ.append(name)
    files = ("metrics.csv", "rollout.csv")
    return differ + [name for name in files if (run / name).read_bytes() != (expected / name).read_bytes()]
