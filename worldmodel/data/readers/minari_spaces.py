"""The spaces that Minari's metadata describe, leaf by leaf, and where each leaf lies in an episode's group."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium.spaces as gym
import numpy as np

from worldmodel.data.spaces import Json, describe
from worldmodel.errors import UserError


@dataclass(frozen=True)
class Leaf:
    """A leaf of a space that may be nested: a Dict is a group, a Tuple one of `_index_0`, `_index_1`, ..."""

    place: str  # the dataset below the episode's group
    space: Json
    unreadable: str = ""  # why


def leaves_of(space: Json, place: str, key: str = "") -> Iterator[tuple[str, Leaf]]:
    """(key, leaf) of every leaf; the key of a space that is one leaf is empty."""
    match space["type"]:
        case "Dict":
            for name, part in space["subspaces"].items():
                yield from leaves_of(part, f"{place}/{name}", f"{key}/{name}" if key else name)
        case "Tuple":
            for i, part in enumerate(space["subspaces"]):
                yield from leaves_of(part, f"{place}/_index_{i}", f"{key}/{i}" if key else str(i))
        case "Box" | "Discrete" | "MultiDiscrete" | "MultiBinary":
            yield key, Leaf(place, describe(_space(space)))
        case kind:
            yield key, Leaf(place, {}, f"{kind}, no numbers")


def side_by_side(leaves: dict[str, Leaf]) -> Json:
    """One space for the parts of an action: of Boxes a Box, of Discrete ones a MultiDiscrete.

    Raises:
        UserError: for a mixture of both.
    """
    spaces = [leaf.space for leaf in leaves.values()]
    if len(spaces) == 1:
        return spaces[0]
    kinds = {"continuous" if space["type"] == "Box" else "discrete" for space in spaces}
    if "MultiBinary" in (space["type"] for space in spaces) or len(kinds) > 1:
        parts = ", ".join(f"{key} ({leaf.space['type']})" for key, leaf in leaves.items())
        raise UserError(f"the action's parts {parts} do not make one vector: choose some with --action")
    if kinds == {"discrete"}:
        return {"type": "MultiDiscrete", "nvec": [n for space in spaces for n in np.ravel(_counts(space)).tolist()]}
    bounds = {side: [b for space in spaces for b in _bound(space, side)] for side in ("low", "high")}
    dtype = np.result_type(*(space["dtype"] for space in spaces))
    return {"type": "Box", "shape": [len(bounds["low"])], "dtype": str(dtype), **bounds}


def joined(parts: list[np.ndarray], leaves: dict[str, Leaf]) -> np.ndarray:
    """The parts (T, ...) of actions as values (T, entries) of `side_by_side`."""
    if len(parts) == 1:
        return parts[0]
    firsts = [leaf.space.get("start", 0) for leaf in leaves.values()]
    shifted = [part - first if first else part for part, first in zip(parts, firsts, strict=True)]
    return np.concatenate([part.reshape(len(part), -1) for part in shifted], axis=1)


def _counts(space: Json) -> Any:
    return space["n"] if space["type"] == "Discrete" else space["nvec"]


def _bound(space: Json, side: str) -> list[float | None]:
    bound, entries = space[side], int(np.prod(space["shape"]))
    return bound if isinstance(bound, list) else [bound] * entries


def _space(of: Json) -> gym.Space:
    """The space that minari.serialization wrote."""
    match of["type"]:
        case "Box":
            dtype = np.dtype(of["dtype"])
            low, high = np.asarray(of["low"], dtype), np.asarray(of["high"], dtype)
            return gym.Box(low, high, tuple(of["shape"]), dtype.type)
        case "Discrete":
            return gym.Discrete(of["n"], start=of.get("start", 0))
        case "MultiDiscrete":
            if np.any(of.get("start", 0)):
                raise UserError("a MultiDiscrete space that does not start at 0 is not supported")
            return gym.MultiDiscrete(of["nvec"])
    return gym.MultiBinary(of["n"])
