"""Rows on disk: tables larger than memory, from which a batch takes what it needs."""

import math
import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from worldmodel.data.hdf5 import observations_of, open_checked
from worldmodel.data.spaces import Json, images_of
from worldmodel.errors import UserError

MOST_OPEN = 32  # shards at once


class Rows(Protocol):
    """A table of frames; a NumPy array in memory is one too."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # (F, width)
    @property
    def dtype(self) -> Any: ...
    def take(self, indices: np.ndarray, /, *, axis: int) -> np.ndarray: ...  # (...) int -> (..., width); axis 0


def runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The begins (R,) and ends (R,) of the runs of consecutive numbers in a flat array (N,)."""
    ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows))
    return np.append(0, ends[:-1]), ends


class DiskRows:
    """Rows (F, width) of a raw file, through a memory map.

    If the address space is limited (ulimit -v), a map would take it all; then the runs of neighbouring rows that make
    up a batch are read by position.

    Args:
        path: file whose size is a multiple of a row's.
        width: values per row.
        dtype: type of a value.
    """

    def __init__(self, path: Path, width: int, dtype: Any) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        self.shape = (path.stat().st_size // self.row_bytes, width)
        self._map: np.memmap | None = None
        self._file: int | None = None
        self._open()  # now, so that it stays readable if another run replaces the cache

    def _open(self) -> None:
        if self._map is not None or self._file is not None:
            return
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY and self.shape[0]:
            self._map = np.memmap(self.path, self.dtype, mode="r", shape=self.shape)
        else:
            self._file = os.open(self.path, os.O_RDONLY)

    def take(self, indices: np.ndarray, /, *, axis: int = 0) -> np.ndarray:
        self._open()
        return self._read(indices) if self._map is None else np.asarray(self._map.take(indices, axis=0))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        assert self._file is not None, "opened by take"
        flat = indices.ravel()
        out = np.empty((len(flat), self.shape[1]), self.dtype)
        if not len(flat):
            return out.reshape(*indices.shape, self.shape[1])
        target, size = out.data.cast("B"), self.row_bytes
        for begin, end in zip(*(edge.tolist() for edge in runs(flat)), strict=True):
            done, total = 0, (end - begin) * size
            while done < total:  # a call reads at most 2 GB
                part = target[begin * size + done : end * size]
                if not (got := os.preadv(self._file, [part], int(flat[begin]) * size + done)):
                    raise OSError(f"{self.path} is shorter than it was: remove its folder, and it will be made again")
                done += got
        return out.reshape(*indices.shape, self.shape[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_map": None}  # every process opens its own


class ShardFrames:
    """Images (F, width) that stay compressed in their shards and are decoded when a batch needs them.

    Args:
        blocks: (path, first frame in the shard, number of frames) of each stretch, in the order of the rows.
        leaves: key -> image leaf; a row holds the pixels of all keys side by side, channels last.
    """

    def __init__(self, blocks: list[tuple[Path, int, int]], leaves: dict[str, Json]) -> None:
        self.paths = [path for path, _, _ in blocks]
        self.offsets = np.array([offset for _, offset, _ in blocks])
        self.ends = np.cumsum([frames for _, _, frames in blocks])
        self.starts = np.append(0, self.ends[:-1])
        self.leaves = leaves
        width = sum(math.prod(leaf["shape"]) for leaf in leaves.values())
        self.shape, self.dtype = (int(self.ends[-1]), width), np.dtype(np.uint8)
        self._open: OrderedDict[tuple[int, Path], tuple[h5py.File, dict[str, h5py.Dataset]]] = OrderedDict()

    def take(self, indices: np.ndarray, /, *, axis: int = 0) -> np.ndarray:
        flat = indices.ravel()
        out = np.empty((len(flat), self.shape[1]), np.uint8)
        for begin, end in zip(*(edge.tolist() for edge in runs(flat)), strict=True):
            while begin < end:  # a run may continue in the next stretch
                block = int(np.searchsorted(self.ends, flat[begin], side="right"))
                count = min(end - begin, int(self.ends[block] - flat[begin]))
                first = int(self.offsets[block] + flat[begin] - self.starts[block])
                self._read(self.paths[block], first, out[begin : begin + count])
                begin += count
        return out.reshape(*indices.shape, self.shape[1])

    def _read(self, path: Path, first: int, out: np.ndarray) -> None:
        left, stored = 0, self._opened(path)
        for key, leaf in self.leaves.items():
            pixels = images_of(stored[key][first : first + len(out)], leaf).reshape(len(out), -1)
            out[:, left : left + pixels.shape[1]] = pixels
            left += pixels.shape[1]

    def _opened(self, path: Path) -> dict[str, h5py.Dataset]:
        """The observations of an open shard; the least recently used one is closed if there are too many."""
        key = os.getpid(), path  # a handle must not be shared with a forked worker
        if key not in self._open:
            if not path.exists():
                raise UserError(f"{path} is gone: the dataset was compacted or removed while it was read; start again")
            file = open_checked(path)
            self._open[key] = file, observations_of(file)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(key)
        return self._open[key][1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
