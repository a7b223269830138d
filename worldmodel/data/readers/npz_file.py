"""npz files from anywhere: no pickle is run, and no more is unpacked than such a file should hold."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from worldmodel.data.readers.fields import Stored
from worldmodel.errors import UserError, nearest

Columns = dict[str, np.ndarray]  # name -> (N, ...)
FLOOR, EXPANSION = 256 << 20, 200  # bytes that any file may unpack to; above that: this many times its size


class NpzArrays:
    """An npz file as `Arrays`: an array is unpacked once any of it is read, and kept."""

    def __init__(self, path: Path) -> None:
        self.path, self.stored = path, members(path)
        self._read: Columns = {}

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        if start == stop:
            return np.empty((0, *self.stored[name].shape[1:]), self.stored[name].dtype)
        if name not in self._read:
            self._read |= load(self.path, [name])
        return self._read[name][start:stop]

    def labels(self, name: str) -> np.ndarray:
        with _open(self.path) as archive, archive.open(f"{name}.npy") as file:
            return npy.read_array(file, allow_pickle=False)


def members(path: Path) -> dict[str, Stored]:
    """Name -> (shape, dtype) of every array in the file, from the headers alone; a UserError if they cannot be true."""
    with _open(path) as archive:
        total, limit = sum(info.file_size for info in archive.infolist()), max(FLOOR, EXPANSION * path.stat().st_size)
        if total > limit:
            raise UserError(f"{path} would unpack to {total:,} bytes, far more than a file of its size should hold")
        found: dict[str, Stored] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                shape, dtype, header = _header(file, f"{path}: {name!r}")
            if math.prod(shape) * dtype.itemsize + header != info.file_size:
                raise UserError(f"{path}: {name!r} declares {list(shape)} of {dtype}, which is not what it holds")
            found[name] = Stored(shape, dtype)
    return found


def _header(file: Any, where: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, length of the header) of an array in the .npy format."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise UserError(f"{where}: version {version} of the .npy format is not read")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects (a pickle), which could run code; only numbers are read")
    return shape, dtype, file.tell()


def load(path: Path, names: Sequence[str]) -> Columns:
    """The named arrays, which must have as many rows as each other."""
    stored = members(path)
    columns = {}
    with _open(path) as archive:
        for name in names:
            if name not in stored:
                raise UserError(f"{path}: there is no array {name!r}; {nearest(name, stored)}")
            if stored[name].rows < 0:
                shape = list(stored[name].shape)
                raise UserError(f"{path}: {name!r} is {stored[name].dtype} {shape}, no rows of numbers")
            with archive.open(f"{name}.npy") as file:
                columns[name] = npy.read_array(file, allow_pickle=False)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: arrays of different lengths: {lengths}")
    return columns


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as .npz: it is damaged, or of another format ({reason})") from error
