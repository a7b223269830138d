"""Minari 0.5 datasets (HDF5 storage), read without the minari package.

Layout: `data/metadata.json` and `data/main_data.hdf5` with `episode_i/{observations, actions, rewards, terminations,
truncations}`; observations hold T + 1 entries, the final one included, the others T. Dict observations are groups.
Images of at least 32 pixels a side are JPEG files, one per frame, unless `jpeg_encoding` was off (minari.dataset).
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium.spaces as gym
import h5py
import numpy as np
from PIL import Image

from worldmodel.data.episode import ALIGNMENT, Episode, Reader, Source, fingerprint
from worldmodel.data.hdf5 import dataset, open_hdf5, read
from worldmodel.data.readers.alignment import Rows, check_spaces, episode_of
from worldmodel.data.spaces import Json, describe, describe_observation
from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable

FLOOR, EXPANSION = 64 << 20, 1100  # bytes that images may unpack to; above that: this many times their file's size
TO_HDF5 = (
    "import minari; from minari.dataset.minari_storage import MinariStorage; d = minari.load_dataset(ID);"
    " MinariStorage.new(FOLDER, d.observation_space, d.action_space, data_format='hdf5', jpeg_encoding=False)"
    ".update_from_storage(d.storage)"
)
MAIN = "main_data.hdf5"
KEPT = ("dataset_id", "minari_version", "algorithm_name", "author", "code_permalink")


@dataclass(frozen=True)
class _Layout:
    observations: dict[str, Json]  # key -> leaf
    places: dict[str, str]  # key -> dataset below the episode's group
    actions: Json


def read_minari(path: Path) -> Source:
    """The dataset in `path`: the folder of a Minari dataset, or the `data` folder in it.

    Raises:
        UserError: if there is none, it is stored as Arrow, its spaces are not supported, or episodes are missing.
    """
    folder = next((f for f in (path, path / "data") if (f / "metadata.json").is_file()), None)
    if folder is None:
        raise UserError(f"{path} is no Minari dataset: neither it nor {path.name}/data holds metadata.json")
    metadata = _metadata(folder / "metadata.json")
    layout = _layout(metadata, folder / "metadata.json")
    files = sorted(folder.glob("*.hdf5"), key=lambda file: (file.name != MAIN, len(file.name), file.name))
    state = fingerprint([folder / "metadata.json", *files], folder)
    lossy: set[str] = set()  # keys that are JPEG files
    names = {file: _episodes_in(file, layout, lossy) for file in files}
    held, total = sum(map(len, names.values())), metadata.get("total_episodes")
    if not held or held != total:
        raise UserError(f"{folder}: metadata.json names {total} episodes, its .hdf5 files hold {held}")
    about = _provenance(metadata) | ({"lossy": dict.fromkeys(sorted(lossy), "JPEG")} if lossy else {})
    stream = partial(_episodes, names, layout)
    return Source(path, "minari", layout.observations, layout.actions, ALIGNMENT, state, stream, about)


READER = Reader(
    looks_like="Minari (data/main_data.hdf5)",
    recognises=lambda path: (path / "data" / MAIN).exists() or (path / MAIN).exists(),
    open=read_minari,
)


def _metadata(path: Path) -> Json:
    try:
        metadata = json.loads(check_readable(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} is no Minari metadata: it must be a JSON object")
    if (stored := metadata.get("data_format", "hdf5")) != "hdf5":
        raise UserError(f"{path.parent} is stored as {stored}; make it HDF5, where minari is installed: {TO_HDF5}")
    return metadata


def _layout(metadata: Json, path: Path) -> _Layout:
    parts = []
    for key in ("observation_space", "action_space"):
        if not isinstance(metadata.get(key), str):
            raise UserError(f"{path} names no {key}: it is older than Minari 0.5; write it again with a newer one")
        try:
            parts.append(_space(json.loads(metadata[key])))
        except UserError as error:
            raise UserError(f"{path}: {key}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
            raise UserError(f"{path}: its {key} cannot be read: {type(error).__name__} {error}") from None
    leaves = describe_observation(parts[0])
    is_dict = isinstance(parts[0], gym.Dict)
    places = {key: f"observations/{key}" if is_dict else "observations" for key in leaves}
    return _Layout(leaves, places, describe(parts[1]))


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
        case "MultiBinary":
            return gym.MultiBinary(of["n"])
        case "Dict":
            return gym.Dict({key: _space(part) for key, part in of["subspaces"].items()})
    raise UserError(f"a {of['type']} space is not supported: Box, Discrete, MultiDiscrete, MultiBinary and Dict are")


def _episodes_in(path: Path, layout: _Layout, lossy: set[str]) -> list[str]:
    """The names of a file's episodes, by number; adds to `lossy` the keys whose frames are JPEG files in the first."""
    with open_hdf5(path) as file:
        names = [str(name) for name in file]
        numbered = [name for name in names if name.startswith("episode_") and name[8:].isdecimal()]
        numbered.sort(key=lambda name: int(name[8:]))
        for key, leaf in layout.observations.items() if numbered else ():
            if _is_jpeg(dataset(file, f"{numbered[0]}/{layout.places[key]}", path), leaf):
                lossy.add(key)
    return numbered


def _episodes(names: dict[Path, list[str]], layout: _Layout) -> Iterator[tuple[str, Episode]]:
    for path, of_file in names.items():
        with open_hdf5(path) as file:
            for name in of_file:
                where = f"{path.name}, {name.replace('_', ' ')}"
                group = file.get(name)
                if not isinstance(group, h5py.Group):
                    raise UserError(f"{where} is no group, as an episode of Minari must be")
                yield where, _episode(group, layout, path, where)


def _episode(group: h5py.Group, layout: _Layout, path: Path, where: str) -> Episode:
    observations = {
        key: _values(group, layout.places[key], leaf, path, f"{where}: {key}")
        for key, leaf in layout.observations.items()
    }
    columns = {name: read(group, name, path) for name in ("actions", "rewards", "terminations", "truncations")}
    steps = len(columns["rewards"])
    for name, values in columns.items():
        if len(values) != steps:
            raise UserError(f"{where}: {len(values)} {name}, but {steps} rewards; Minari holds one per transition")
    episode = episode_of(Rows(observations, *columns.values()), "next", "next", where)
    check_spaces(episode, layout.observations, layout.actions, where)
    return episode


def _values(group: h5py.Group, place: str, leaf: Json, path: Path, where: str) -> np.ndarray:
    """The array (N, ...) of one observation key, decoded if its frames are JPEG files."""
    stored = dataset(group, place, path)
    if not _is_jpeg(stored, leaf):
        return read(group, place, path)
    size = len(stored) * math.prod(leaf["shape"])
    if size > max(FLOOR, EXPANSION * path.stat().st_size):
        raise UserError(f"{where}: its frames would take {size:,} bytes, more than {path.name} can hold")
    frames = np.empty((len(stored), *leaf["shape"]), np.uint8)
    for step in range(len(stored)):
        frames[step] = _jpeg(np.asarray(stored[step]).tobytes(), leaf["shape"], f"{where}, step {step}")
    return frames


def _is_jpeg(stored: Any, leaf: Json) -> bool:
    return leaf["type"] == "Box" and leaf["dtype"] == "uint8" and len(leaf["shape"]) >= 2 and stored.ndim <= 2


def _jpeg(encoded: bytes, shape: list[int], where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
            if [image.height, image.width] != shape[:2]:  # from the header, before anything is decoded
                raise UserError(f"{where}: a frame of {image.height} x {image.width} pixels, not {shape}")
            frame = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{where}: the JPEG frame cannot be decoded ({error})") from None
    if list(frame.shape) != shape:
        raise UserError(f"{where}: a frame has the shape {list(frame.shape)}, the space {shape}")
    return frame


def _provenance(metadata: Json) -> Json:
    kept: Json = {key: metadata[key] for key in KEPT if metadata.get(key)}
    try:
        spec = json.loads(metadata.get("env_spec") or "{}")
        return kept | ({"env_id": spec["id"], "max_episode_steps": spec.get("max_episode_steps")} if spec else {})
    except (ValueError, TypeError, KeyError, RecursionError):
        return kept | {"env_id": "unreadable"}
