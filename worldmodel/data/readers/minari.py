"""Minari 0.5 datasets (HDF5 storage), read without the minari package.

Layout: `data/metadata.json` and `data/main_data.hdf5` with `episode_i/{observations, actions, rewards, terminations,
truncations}`; observations hold T + 1 entries, the final one included, the others T. Dict and Tuple spaces are groups.
Images of at least 32 pixels a side are JPEG files, one per frame, unless `jpeg_encoding` was off (minari.dataset).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episode import ALIGNMENT, Episode, Reader, Source, fingerprint
from worldmodel.data.hdf5 import dataset, open_hdf5, read
from worldmodel.data.readers.alignment import Rows, check_spaces, episode_of
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.minari_spaces import Leaf, joined, leaves_of, side_by_side
from worldmodel.data.readers.pictures import check_unpacked, decoded
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable

TO_HDF5 = (
    "import minari; from minari.dataset.minari_storage import MinariStorage; d = minari.load_dataset(ID);"
    " MinariStorage.new(FOLDER, d.observation_space, d.action_space, data_format='hdf5', jpeg_encoding=False)"
    ".update_from_storage(d.storage)"
)
MAIN = "main_data.hdf5"
KEPT = ("dataset_id", "minari_version", "algorithm_name", "author", "code_permalink")


@dataclass(frozen=True)
class _Layout:
    observations: dict[str, Leaf]  # by key
    action: dict[str, Leaf]  # its parts
    reward: str
    left_out: dict[str, str]  # name -> why

    @property
    def spaces(self) -> tuple[dict[str, Json], Json]:
        return {key: leaf.space for key, leaf in self.observations.items()}, side_by_side(self.action)


def read_minari(path: Path, choice: Choice | None = None) -> Source:
    """The dataset in `path`: the folder of a Minari dataset, or the `data` folder in it.

    Keys of a nested space are joined by slashes, a Tuple's are its numbers. An action of several parts is one vector.

    Raises:
        UserError: if there is none, it is stored as Arrow, its spaces are not supported, or episodes are missing.
    """
    folder = next((f for f in (path, path / "data") if (f / "metadata.json").is_file()), None)
    if folder is None:
        raise UserError(f"{path} is no Minari dataset: neither it nor {path.name}/data holds metadata.json")
    metadata = _metadata(folder / "metadata.json")
    layout = _layout(metadata, folder / "metadata.json", choice or Choice())
    files = sorted(folder.glob("*.hdf5"), key=lambda file: (file.name != MAIN, len(file.name), file.name))
    state = fingerprint([folder / "metadata.json", *files], folder)
    lossy: set[str] = set()  # keys that are JPEG files
    names = {file: _episodes_in(file, layout, lossy) for file in files}
    held, total = sum(map(len, names.values())), metadata.get("total_episodes")
    if not held or held != total:
        raise UserError(f"{folder}: metadata.json names {total} episodes, its .hdf5 files hold {held}")
    about = _provenance(metadata) | ({"lossy": dict.fromkeys(sorted(lossy), "JPEG")} if lossy else {})
    about |= {"left_out": layout.left_out} if layout.left_out else {}
    stream = partial(_episodes, names, layout)
    return Source(path, "minari", *layout.spaces, ALIGNMENT, state, stream, about)


READER = Reader(
    looks_like="Minari (data/main_data.hdf5)",
    recognises=lambda path: (path / "data" / MAIN).exists() or (path / MAIN).exists(),
    open=read_minari,
    options=("choice",),
    names=True,
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


def _layout(metadata: Json, path: Path, choice: Choice) -> _Layout:
    parts: list[dict[str, Leaf]] = []
    for key, place in (("observation_space", "observations"), ("action_space", "actions")):
        if not isinstance(metadata.get(key), str):
            raise UserError(f"{path} names no {key}: it is older than Minari 0.5; write it again with a newer one")
        try:
            parts.append({name or key[:-6]: leaf for name, leaf in leaves_of(json.loads(metadata[key]), place)})
        except UserError as error:
            raise UserError(f"{path}: {key}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
            raise UserError(f"{path}: its {key} cannot be read: {type(error).__name__} {error}") from None
    observed, action = parts
    every = [{key: leaf.place for key, leaf in leaves.items()} for leaves in parts]
    readable = [{key: leaf.place for key, leaf in leaves.items() if not leaf.unreadable} for leaves in parts]
    keys = choice.keys(readable[0] or every[0], path, every[0])
    names = Choice(choice.action).keys(readable[1] or every[1], path)
    for leaf in [observed[key] for key in keys] + [action[key] for key in names]:
        if leaf.unreadable:
            raise UserError(f"{path}: {leaf.place} cannot be read ({leaf.unreadable})")
    left_out = {leaf.place: leaf.unreadable for leaf in (*observed.values(), *action.values()) if leaf.unreadable}
    chosen = {key: observed[key] for key in keys}, {key: action[key] for key in names}
    return _Layout(*chosen, choice.reward or "rewards", left_out)


def _episodes_in(path: Path, layout: _Layout, lossy: set[str]) -> list[str]:
    """The names of a file's episodes, by number; adds to `lossy` the keys whose frames are JPEG files in the first."""
    with open_hdf5(path) as file:
        names = [str(name) for name in file]
        numbered = [name for name in names if name.startswith("episode_") and name[8:].isdecimal()]
        numbered.sort(key=lambda name: int(name[8:]))
        for key, leaf in layout.observations.items() if numbered else ():
            if _is_jpeg(dataset(file, f"{numbered[0]}/{leaf.place}", path), leaf.space):
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
    observations = {key: _values(group, leaf, path, f"{where}: {key}") for key, leaf in layout.observations.items()}
    rewards, terminations, truncations = (read(group, n, path) for n in (layout.reward, "terminations", "truncations"))
    parts = {leaf.place: _values(group, leaf, path, f"{where}: {leaf.place}") for leaf in layout.action.values()}
    for name, values in (parts | {"terminations": terminations, "truncations": truncations}).items():
        if len(values) != len(rewards):
            count = f"{len(values)} {name}, but {len(rewards)} rewards"
            raise UserError(f"{where}: {count}; Minari holds one per transition")
    actions = joined(list(parts.values()), layout.action)
    episode = episode_of(Rows(observations, actions, rewards, terminations, truncations), "next", "next", where)
    check_spaces(episode, *layout.spaces, where)
    return episode


def _values(group: h5py.Group, leaf: Leaf, path: Path, where: str) -> np.ndarray:
    """The array (N, ...) of one leaf, decoded if its frames are JPEG files."""
    stored, shape = dataset(group, leaf.place, path), leaf.space.get("shape", [])
    if not _is_jpeg(stored, leaf.space):
        return read(group, leaf.place, path)
    check_unpacked(len(stored), shape, path, where)
    frames = np.empty((len(stored), *shape), np.uint8)
    for step in range(len(stored)):
        frames[step] = decoded(np.asarray(stored[step]).tobytes(), shape, f"{where}, step {step}: the frame")
    return frames


def _is_jpeg(stored: Any, leaf: Json) -> bool:
    return leaf["type"] == "Box" and leaf["dtype"] == "uint8" and len(leaf["shape"]) >= 2 and stored.ndim <= 2


def _provenance(metadata: Json) -> Json:
    kept: Json = {key: metadata[key] for key in KEPT if metadata.get(key)}
    try:
        spec = json.loads(metadata.get("env_spec") or "{}")
        return kept | ({"env_id": spec["id"], "max_episode_steps": spec.get("max_episode_steps")} if spec else {})
    except (ValueError, TypeError, KeyError, RecursionError):
        return kept | {"env_id": "unreadable"}
