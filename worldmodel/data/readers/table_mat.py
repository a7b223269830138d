"""MATLAB files: arrays of equal length as columns; version 7.3, which is HDF5, and the versions before it."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.readers.parquet import check_declared
from worldmodel.errors import UserError, nearest

SUFFIXES = (".mat",)
NUMBERS = {"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


class MatFile:
    """A MATLAB file as `Columns`: a vector (N x 1 or 1 x N) is a column, a matrix (N x k) a vector in each row.

    The arrays in `wanted` are read together, once any of them is, and kept as float64.

    Raises:
        UserError: if the file is damaged or declares more than it can hold, or an array holds no real numbers.
    """

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path, self.wanted = path, wanted
        self.values: dict[str, np.ndarray] = {}
        self.is_hdf5 = h5py.is_hdf5(path)
        self.shapes = self._hdf5_shapes() if self.is_hdf5 else self._shapes()

    def has(self, name: str) -> bool:
        return name in self.shapes

    def rows(self, name: str) -> int:
        self._check(name)
        shape = self.shapes[name]
        return max(shape) if _is_vector(shape) else shape[0]

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        self._check(name)
        if name not in self.values:
            names = list(dict.fromkeys([name, *(other for other in self.wanted if self.has(other))]))
            self.values |= self._read_hdf5(names) if self.is_hdf5 else self._read(names)
        return self.values[name][start:stop]

    def labels(self, name: str) -> np.ndarray:
        return self.read(name, 0, None)

    def place(self, name: str, row: int) -> str:
        return f"{self.path}: row {row}, array {name!r}"

    def sample(self) -> dict[str, bool]:
        """The names of the arrays, and whether each is a column of numbers as long as the longest."""
        rows = {name: self.rows(name) for name in self.shapes}
        return {name: count == max(rows.values()) for name, count in rows.items()}

    def _check(self, name: str) -> None:
        if not self.has(name):
            raise UserError(f"{self.path}: there is no array of numbers {name!r}; {nearest(name, self.shapes)}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        from scipy.io import whosmat

        arrays = self._loaded(whosmat, str(self.path))
        if not arrays or not self._is_whole(self.path.stat().st_size):
            raise UserError(f"{self.path} cannot be read as a MATLAB file: it is cut off, or empty")
        check_declared(self.path, sum(8 * math.prod(shape) for _, shape, _ in arrays))
        return {name: shape for name, shape, kind in arrays if kind in NUMBERS and math.prod(shape)}

    def _is_whole(self, held: int) -> bool:
        """Whether the last element of a version 5 file ends where the file does; scipy takes what there is."""
        with self.path.open("rb") as file:
            header = file.read(128)
            if not header.startswith(b"MATLAB 5"):
                return True
            order, end = "<" if header[126:] == b"IM" else ">", 128
            while len(tag := file.read(8)) == 8:
                end = file.seek(struct.unpack(f"{order}4xI", tag)[0], 1)
        return end == held

    def _read(self, names: list[str]) -> dict[str, np.ndarray]:
        from scipy.io import loadmat

        arrays = self._loaded(loadmat, str(self.path), variable_names=names)
        return {name: self._column(arrays[name], name) for name in names}

    def _loaded(self, load: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load(*arguments, **options)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes scipy raise nearly anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path} cannot be read as a MATLAB file: it is damaged ({reason})") from error

    def _hdf5_shapes(self) -> dict[str, tuple[int, ...]]:
        with open_hdf5(self.path) as file:
            arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            return {
                name: item.shape[::-1]  # MATLAB stores by columns
                for name, item in arrays.items()
                if item.dtype.kind in "biuf" and item.shape and item.size and _kind(item) in NUMBERS
            }

    def _read_hdf5(self, names: list[str]) -> dict[str, np.ndarray]:
        with open_hdf5(self.path) as file:
            return {name: self._column(np.asarray(file[name]).T, name) for name in names}

    def _column(self, values: np.ndarray, name: str) -> np.ndarray:
        if values.dtype.kind not in "biuf":
            raise UserError(f"{self.path}: {name!r} holds {values.dtype}, not real numbers")
        return (values.reshape(-1) if _is_vector(values.shape) else values).astype(np.float64)


def _kind(item: h5py.Dataset) -> str:
    """MATLAB's name of the type; characters and empty arrays are stored as numbers too."""
    kind = item.attrs.get("MATLAB_class", b"double")
    return "empty" if "MATLAB_empty" in item.attrs else bytes(kind).decode()


def _is_vector(shape: tuple[int, ...]) -> bool:
    return max(shape) == math.prod(shape)
