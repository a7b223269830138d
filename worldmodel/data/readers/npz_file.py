"""One .npz file from anywhere, read so that no pickle is run and no more is unpacked than such a file should hold."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from worldmodel.errors import UserError, nearest

FLOOR, EXPANSION = 256 << 20, 200  # bytes that any file may unpack to; beyond: times its size
Columns = dict[str, np.ndarray]  # name -> (N, ...)
Member = tuple[tuple[int, ...], np.dtype]  # shape, dtype


def members_of(path: Path) -> dict[str, Member]:
    """Name -> (shape, dtype) of every array in the file, none of which has been read.

    Raises:
        UserError: if the file could unpack to far more than its size, an array's header and size disagree, or one
            holds objects (which is where pickles hide).
    """
    with _open(path) as archive:
        total, limit = sum(info.file_size for info in archive.infolist()), max(FLOOR, EXPANSION * path.stat().st_size)
        if total > limit:
            raise UserError(f"{path} would unpack to {total:,} bytes, far more than a file of its size should hold")
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                shape, dtype, header = _header(file, f"{path}: {name!r}")
            if math.prod(shape) * dtype.itemsize + header != info.file_size:
                raise UserError(f"{path}: {name!r} declares {list(shape)} of {dtype}, which is not what it holds")
            members[name] = shape, dtype
    return members


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
    """The named arrays, all with as many rows."""
    members = members_of(path)
    found = {}
    with _open(path) as archive:
        for name in names:
            if name not in members:
                raise UserError(f"{path}: there is no array {name!r}; {nearest(name, members)}")
            if members[name][1].kind not in "biuf" or not members[name][0]:
                raise UserError(f"{path}: {name!r} is {members[name][1]} {list(members[name][0])}, no rows of numbers")
            with archive.open(f"{name}.npy") as file:
                found[name] = npy.read_array(file, allow_pickle=False)
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: arrays of different lengths: {lengths}")
    return found


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
