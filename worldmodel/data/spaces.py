"""Gymnasium spaces: as plain JSON for the manifest, and as float vectors or images for a network.

An observation is a dict of *leaves*, key -> Box, Discrete, MultiDiscrete or MultiBinary; a space that is no Dict has
the single key `observation`, nested Dicts have keys such as `robot/arm`. A uint8 Box with the shape of a picture is an
image, everything else becomes a vector. A leaf may have an `origin`, a number for each entry, which is subtracted
before values become float32 (resolution.py).
"""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.errors import UserError

Json = dict[str, Any]
OBSERVATION = "observation"  # the key of an observation that is no dict
MOST_ENTRIES, MOST_VALUES = 2**26, 2**16  # of a Box, and of a one-hot vector
DTYPES = [np.dtype(code).name for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"]
MIN_SIDE = 8  # pixels; a smaller uint8 array is a vector (a MiniGrid view of 7x7x3 codes, for example)


def describe(space: spaces.Space) -> Json:
    """A Box, Discrete, MultiDiscrete or MultiBinary space as plain JSON (infinite bounds are null).

    Bounds that are the same for all entries are one number.

    Raises:
        UserError: for any other space.
    """
    match space:
        case spaces.Box():
            shape, low, high = list(space.shape), _bounds(space.low), _bounds(space.high)
            return {"type": "Box", "shape": shape, "dtype": str(space.dtype), "low": low, "high": high}
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
    raise UserError(
        f"a {type(space).__name__} space is not supported: Box, Discrete, MultiDiscrete and MultiBinary are, and for"
        " observations a Dict of them; wrap the environment (gymnasium.wrappers.FlattenObservation, for example)"
    )


def describe_observation(space: spaces.Space) -> dict[str, Json]:
    """The leaves of an observation space, key -> `describe`d leaf."""
    if not isinstance(space, spaces.Dict):
        return {OBSERVATION: describe(space)}
    leaves: dict[str, Json] = {}
    for key, part in space.spaces.items():
        for inner, leaf in describe_observation(part).items():
            name = f"{key}/{inner}" if isinstance(part, spaces.Dict) else key
            if name in leaves:
                raise UserError(f"the observation space has the key {name!r} twice: rename one of them")
            leaves[name] = leaf
    return leaves


def leaves_of(observation: Any) -> dict[str, np.ndarray]:
    """An observation, or a batch of them, as a flat dict with the keys of `describe_observation`."""
    if not isinstance(observation, dict):
        return {OBSERVATION: np.asarray(observation)}
    leaves: dict[str, np.ndarray] = {}
    for key, part in observation.items():
        for inner, value in leaves_of(part).items():
            leaves[f"{key}/{inner}" if isinstance(part, dict) else key] = value
    return leaves


def box_of(values: np.ndarray) -> Json:
    """A Box for rows (N, ...) whose space nobody declared: unbounded, or 0 to 255 for uint8."""
    low, high = (0.0, 255.0) if values.dtype == np.uint8 else (None, None)
    return {"type": "Box", "shape": list(values.shape[1:]), "dtype": str(values.dtype), "low": low, "high": high}


def image_shape(leaf: Json) -> tuple[int, int, int] | None:
    """(H, W, C) if the leaf is an image: uint8, (H, W), (H, W, C) or (C, H, W) with C at most 16; else None."""
    if leaf["type"] != "Box" or leaf["dtype"] != "uint8":
        return None
    match leaf["shape"]:
        case [h, w] if min(h, w) >= MIN_SIDE:
            return h, w, 1
        case [h, w, c] if c <= 16 and min(h, w) >= MIN_SIDE:
            return h, w, c
        case [c, h, w] if c <= 16 and min(h, w) >= MIN_SIDE:
            return h, w, c
    return None


def images_of(values: np.ndarray, leaf: Json) -> np.ndarray:
    """Images (N, ...) of a leaf as (N, H, W, C)."""
    shape = image_shape(leaf)
    assert shape is not None, "the leaf is an image"
    channels_first = values.ndim == 4 and tuple(leaf["shape"]) != shape
    return (np.moveaxis(values, 1, -1) if channels_first else values).reshape(len(values), *shape)


def num_features(leaf: Json) -> int:
    """The width of the vectors that `features` returns."""
    match leaf["type"]:
        case "Discrete":
            return leaf["n"]
        case "MultiDiscrete":
            return int(np.sum(leaf["nvec"]))
    return math.prod(leaf["shape"])


def is_continuous(leaf: Json) -> bool:
    """Whether the features have a scale that normalisation should remove."""
    return leaf["type"] == "Box"


def features(values: np.ndarray, leaf: Json) -> np.ndarray:
    """Values (N, ...) of a leaf as float32 vectors (N, num_features), one-hot where discrete; ValueError if invalid.

    Of a leaf with an origin, the differences from it.
    """
    match leaf["type"]:
        case "Discrete":
            return _one_hot(values.reshape(-1) - leaf.get("start", 0), leaf["n"])
        case "MultiDiscrete":
            columns = values.reshape(len(values), -1).T
            hot = [_one_hot(column, n) for column, n in zip(columns, np.ravel(leaf["nvec"]), strict=True)]
            return np.concatenate(hot, axis=1)
    flat = values.reshape(len(values), -1)
    if "origin" in leaf and flat.shape[1] == len(leaf["origin"]):
        flat = exact(flat) - np.array(leaf["origin"], np.longdouble)
    return np.ascontiguousarray(flat, dtype=np.float32)


def exact(values: np.ndarray) -> np.ndarray:
    """Values in a type in which differences of neighbours are exact: float64 does not hold every int64."""
    return values.astype(np.longdouble if values.dtype.kind in "biu" else np.promote_types(values.dtype, np.float64))


def values(features: np.ndarray, leaf: Json) -> np.ndarray:
    """The inverse of `features`: vectors (N, num_features) as values (N, ...); of a one-hot, its largest entry."""
    match leaf["type"]:
        case "Discrete":
            return features.argmax(axis=1) + leaf.get("start", 0)
        case "MultiDiscrete":
            parts = np.split(features, np.cumsum(np.ravel(leaf["nvec"]))[:-1], axis=1)
            return np.stack([part.argmax(axis=1) for part in parts], axis=1).reshape(-1, *np.shape(leaf["nvec"]))
        case "MultiBinary":
            return (features > 0.5).astype(np.int8).reshape(-1, *leaf["shape"])
    return features.astype(leaf["dtype"]).reshape(-1, *leaf["shape"])


def in_words(space: Json) -> str:
    """A leaf, or a dict of leaves, without its bounds: `Box [3] float32`."""
    if "type" not in space or isinstance(space["type"], dict):
        return ", ".join(f"{key}: {in_words(leaf)}" for key, leaf in space.items())
    sizes = space.get("shape", space.get("nvec", space.get("n")))
    return f"{space['type']} {sizes} {space.get('dtype', '')}".rstrip()


def outside(values: np.ndarray, leaf: Json) -> str:
    """In words, why values (N, ...) cannot be of the leaf; empty if they can.

    The bounds of a Box are ignored: simulators leave theirs (`worldmodel data check` reports it).
    """
    if values.dtype.kind not in "biuf":
        return f"are {values.dtype}, no numbers"
    counts = {"Discrete": leaf.get("n"), "MultiDiscrete": leaf.get("nvec")}.get(leaf["type"])
    shape = list(np.shape(counts)) if counts is not None else leaf["shape"]
    if list(values.shape[1:]) != shape:
        return f"are of shape {list(values.shape[1:])}, their space is of {shape}"
    if image_shape(leaf) and values.dtype != np.uint8:
        return f"are {values.dtype}, images must be uint8"
    if counts is not None:
        first = leaf.get("start", 0)
        last = first + np.asarray(counts) - 1
        if values.dtype.kind not in "iu" or (values < first).any() or (values > last).any():
            return f"hold {values.min()} to {values.max()} ({values.dtype}), their space has {first} to {last.tolist()}"
    return ""


def check_leaf(leaf: Any, where: str) -> None:
    """Raise UserError if `leaf` is not what `describe` returns."""
    kinds = {"Box": {"shape", "dtype"}, "Discrete": {"n"}, "MultiDiscrete": {"nvec"}, "MultiBinary": {"shape"}}
    kind = leaf.get("type") if isinstance(leaf, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}: {leaf!r} is not a space: its type must be one of {', '.join(kinds)}")
    if missing := kinds[kind] - leaf.keys():
        raise UserError(f"{where}: a {kind} space needs {' and '.join(sorted(missing))}")
    sizes = leaf.get("shape", [leaf.get("n")] if kind == "Discrete" else np.ravel(leaf.get("nvec", 1)).tolist())
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"{where}: the sizes of the {kind} space are {sizes!r}; they must be whole numbers above 0")
    is_box = kind in ("Box", "MultiBinary")
    entries, most = (math.prod(sizes), MOST_ENTRIES) if is_box else (sum(sizes), MOST_VALUES)
    if entries > most:
        raise UserError(f"{where}: the {kind} space has {entries:,} entries; at most {most:,} are read")
    start = leaf.get("start", 0)
    if kind == "Discrete" and not (type(start) is int and abs(start) < 2**62):
        raise UserError(f"{where}: the first value of the Discrete space is {start!r}; it must be a whole number")
    if kind == "Box":
        if leaf["dtype"] not in DTYPES:
            raise UserError(f"{where}: a Box of {leaf['dtype']!r} is not read; its dtype must be a number's")
        origin = leaf.get("origin", [0] * entries)
        numbers = isinstance(origin, list) and all(type(value) in (int, float) for value in origin)
        if not numbers or len(origin) != entries or not all(abs(value) < 1e300 for value in origin):
            raise UserError(f"{where}: the origin of the Box must be a list of {entries} numbers")
        for bound in (leaf.get("low"), leaf.get("high")):
            each = bound if isinstance(bound, list) else [bound]
            numbers = all(value is None or type(value) in (int, float) for value in each)
            if not numbers or (isinstance(bound, list) and len(bound) != entries):
                raise UserError(f"{where}: a bound of the Box must be a number, null, or a list of {entries}")


def check_spaces(observation_space: Any, action_space: Any, where: str) -> None:
    """Raise UserError if these are not an observation space of leaves, and an action space, as `describe` returns."""
    if not isinstance(observation_space, dict) or not observation_space:
        raise UserError(f"{where}: observation_space must name at least one key with its space")
    for key, leaf in observation_space.items():
        check_leaf(leaf, f"{where}, observation_space, {key}")
    check_leaf(action_space, f"{where}, action_space")


def _one_hot(indices: np.ndarray, n: int) -> np.ndarray:
    if indices.size and not (indices.min() >= 0 and indices.max() < n):
        raise ValueError(f"holds the discrete value {indices.max() if indices.max() >= n else indices.min()}, of {n}")
    hot = np.zeros((len(indices), n), dtype=np.float32)
    hot[np.arange(len(indices)), indices.astype(np.int64)] = 1.0
    return hot


def _bounds(values: np.ndarray) -> list[float | None] | float | None:
    bounds = [float(v) if np.isfinite(v) else None for v in values.ravel()]
    return bounds[0] if len(bounds) > 16 and len(set(bounds)) == 1 else bounds
