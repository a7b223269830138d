"""Gymnasium spaces: as plain JSON for the manifest, and as float vectors for a network."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.errors import UserError

Json = dict[str, Any]


def describe(space: spaces.Space) -> Json:
    """A Box, Discrete, MultiDiscrete or MultiBinary space as plain JSON (infinite bounds are null).

    Raises:
        UserError: for any other space.
    """
    match space:
        case spaces.Box():
            return {
                "type": "Box",
                "shape": list(space.shape),
                "dtype": str(space.dtype),
                "low": _bounds(space.low),
                "high": _bounds(space.high),
            }
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
    raise UserError(
        f"a {type(space).__name__} space is not supported: Box, Discrete, MultiDiscrete and MultiBinary are; "
        "wrap the environment (gymnasium.wrappers.FlattenObservation, for example)"
    )


def num_features(space: Json) -> int:
    """Entries of the vector that `features` makes of one value."""
    match space["type"]:
        case "Discrete":
            return space["n"]
        case "MultiDiscrete":
            return int(np.sum(space["nvec"]))
    return math.prod(space["shape"])


def is_continuous(space: Json) -> bool:
    """Whether the features have a scale of their own, which normalisation should take away."""
    return space["type"] == "Box"


def features(values: np.ndarray, space: Json) -> np.ndarray:
    """Values (N, ...) of a space as float32 vectors (N, num_features), one-hot where discrete."""
    match space["type"]:
        case "Discrete":
            return _one_hot(values.reshape(-1) - space["start"], space["n"])
        case "MultiDiscrete":
            columns = values.reshape(len(values), -1).T
            hot = [_one_hot(column, n) for column, n in zip(columns, np.ravel(space["nvec"]), strict=True)]
            return np.concatenate(hot, axis=1)
    return np.ascontiguousarray(values.reshape(len(values), -1), dtype=np.float32)


def _one_hot(indices: np.ndarray, n: int) -> np.ndarray:
    if indices.size and not (indices.min() >= 0 and indices.max() < n):
        raise ValueError(f"holds the discrete value {indices.max() if indices.max() >= n else indices.min()}, of {n}")
    hot = np.zeros((len(indices), n), dtype=np.float32)
    hot[np.arange(len(indices)), indices.astype(np.int64)] = 1.0
    return hot


def _bounds(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values.ravel()]
