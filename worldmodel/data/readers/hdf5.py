"""HDF5 files of D4RL, robomimic, robosuite, LIBERO, ManiSkill, ALOHA and stable-worldmodel, or by a schema."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episode import Reader, Source, fingerprint
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.arrays import read_arrays
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.fields import Arrays, Stored
from worldmodel.data.readers.pictures import check_unpacked, decoded, is_picture, shape_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError

SUFFIXES = (".h5", ".hdf5")
FEWEST = 64  # bytes of a compressed picture


class Hdf5Arrays:
    """An open HDF5 file as `Arrays`; rows that are JPEG or PNG files, as ALOHA's, are pictures."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path
        self.stored: dict[str, Stored] = {}
        self.pictures: set[str] = set()
        file.visititems(self._note)

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        rows: Any = self.file[name]
        if name not in self.pictures:
            return np.asarray(rows[start:stop])
        shape = self.stored[name].shape[1:]
        numbers = range(*slice(start, stop).indices(len(rows)))
        check_unpacked(len(numbers), shape, self.path, f"{self.path.name}: {name}")
        frames = np.empty((len(numbers), *shape), np.uint8)
        for frame, row in zip(frames, numbers, strict=True):
            frame[:] = decoded(_bytes(rows[row]), shape, f"{self.path.name}, {name}, row {row}: the picture")
        return frames

    def labels(self, name: str) -> np.ndarray:
        stored: Any = self.file[name]
        if h5py.check_string_dtype(stored.dtype) is None:
            raise UserError(f"{self.path.name}: {name} holds {stored.dtype}, no number or text a row")
        return stored.asstr()[...]

    def _note(self, name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        self.stored[name] = Stored(item.shape, item.dtype)
        inner = h5py.check_vlen_dtype(item.dtype)
        wide = item.dtype == np.uint8 and item.ndim == 2 and item.shape[1] >= FEWEST
        if item.size and (wide or (inner is not None and item.ndim == 1 and np.dtype(inner) == np.uint8)):
            first = _bytes(item[0])
            if is_picture(first):
                shape = shape_of(first, f"{self.path.name}: {name}")
                self.stored[name] = Stored((len(item), *shape), np.dtype(np.uint8))
                self.pictures.add(name)


def read_hdf5(
    path: Path, schema: Json | None = None, choice: Choice | None = None, alignment: Side | None = None
) -> Source:
    """The episodes in an HDF5 file, or in all .h5 and .hdf5 files of a folder, which have the same layout.

    Args:
        path: file or folder.
        schema: see readers.schema; None: the layout is recognised.
        choice: what the user names.
        alignment: of a row's action; None: as the layout suggests.

    Raises:
        UserError: if the layout is unknown, the schema has a mistake or does not fit, or a file is damaged.
    """
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{path}: there is no .h5 or .hdf5 file" if path.is_dir() else f"{path} does not exist")
    root = path if path.is_dir() else path.resolve().parent
    files = files if path.is_dir() else [path.resolve()]  # the path may be a link
    state = fingerprint(files, root)
    how: dict[str, Any] = {"choice": choice or Choice(), "schema": schema, "alignment": alignment, "notes": _notes}
    return read_arrays(path, files, _opened, state, "hdf5", **how)


READER = Reader(
    looks_like="an HDF5 file (.h5, .hdf5)",
    recognises=lambda path: (
        path.suffix in SUFFIXES or (path.is_dir() and any(file.suffix in SUFFIXES for file in path.iterdir()))
    ),
    open=read_hdf5,
    options=("schema", "choice", "alignment"),
    names=True,
)


@contextmanager
def _opened(path: Path) -> Iterator[Hdf5Arrays]:
    with open_hdf5(path) as file:
        yield Hdf5Arrays(file, path)


def _bytes(row: Any) -> bytes:
    return np.asarray(row, np.uint8).tobytes()


def _notes(arrays: Arrays, path: Path) -> tuple[float, Json]:
    """(steps a second, the environment) as far as robomimic's attributes, or the JSON beside ManiSkill's, tell them."""
    assert isinstance(arrays, Hdf5Arrays), "opened here"
    try:
        data = arrays.file.get("data")
        attributes: dict[str, Any] = dict(data.attrs) if isinstance(data, h5py.Group) else {}
        if "env_args" in attributes:
            told = json.loads(attributes["env_args"])
            return float((told.get("env_kwargs") or {}).get("control_freq") or "nan"), {"env_id": str(told["env_name"])}
        if "env" in attributes:
            return float("nan"), {"env_id": str(attributes["env"])}
        beside = path.with_suffix(".json")
        if beside.is_file() and beside.stat().st_size < 64 << 20:
            told = json.loads(beside.read_text(encoding="utf-8"))["env_info"]
            return float("nan"), {"env_id": str(told["env_id"])}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return float("nan"), {}
