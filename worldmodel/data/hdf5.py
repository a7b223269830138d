"""HDF5 files from anywhere, opened so that reading them touches no other file and no more than they hold.

An HDF5 file may point to other files (external links, external storage, virtual datasets: CVE-2026-1669), declare far
more than it holds, or name a filter that loads a plugin. Such files are refused before any of their data is read.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np

from worldmodel.errors import UserError, nearest

FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf
PLUGIN_FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}
# bytes that any file may declare; above that: this many times its size (deflate reaches 1032, Zstd on stills 20000)
FLOOR, EXPANSION = 64 << 20, 32_768
CHUNK = 256 << 20  # most bytes of a chunk, which is unpacked as a whole


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading a file that passes `_check`; errors of HDF5, in the block too, become UserErrors."""
    try:
        with open_checked(path) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path} does not exist") from None
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as HDF5: it is damaged, or of another format ({reason})") from error


def open_checked(path: Path) -> h5py.File:
    """Like `open_hdf5`, for a file that stays open; errors of HDF5 itself are OSErrors."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers its filters
    file = h5py.File(path, "r", rdcc_nbytes=16 << 20)
    try:
        _check(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _check(file: h5py.File, path: Path) -> None:
    """Raise UserError if anything in the file reaches outside it or declares more than the file can hold."""
    held = path.stat().st_size
    limit, declared = max(FLOOR, EXPANSION * held), 0
    for name, dataset in _datasets(file, path):
        where = f"{path}: the dataset {name!r}"
        if dataset.is_virtual:
            raise UserError(f"{where} is virtual: its values lie in other files, which is not allowed")
        if dataset.external:
            raise UserError(f"{where} lies in another file (external storage), which is not allowed")
        inner = h5py.check_vlen_dtype(dataset.dtype)  # rows of varying length, such as JPEG files
        plain = h5py.check_string_dtype(dataset.dtype) or (inner is not None and np.dtype(inner).kind in "biuf")
        if dataset.dtype.hasobject and not plain:
            raise UserError(f"{where} holds objects of type {dataset.dtype}; only numbers and text are read")
        plist = dataset.id.get_create_plist()
        for i in range(plist.get_nfilters()):
            code = plist.get_filter(i)[0]
            if code in PLUGIN_FILTERS and not h5py.h5z.filter_avail(code):
                raise UserError(f"{where} is compressed with {PLUGIN_FILTERS[code]}: pip install 'worldmodel[zstd]'")
            if code not in FILTERS and code not in PLUGIN_FILTERS:
                raise UserError(f"{where} names the unknown filter {code}, which would load a plugin")
        size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
        declared += size
        if declared > limit:
            raise UserError(f"{where} declares {size:,} bytes, more than a file of {held:,} bytes can hold")
        if size and (stored := _stored_share(dataset)) < 1:
            raise UserError(f"{where} declares {size:,} bytes and holds {stored:.0%} of them")


def _stored_share(dataset: h5py.Dataset) -> float:
    """The share of a dataset that was ever written; HDF5 makes up the rest."""
    if dataset.chunks is None:
        size = math.prod(dataset.shape) * dataset.dtype.itemsize
        return dataset.id.get_storage_size() / size
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > CHUNK:
        return 0.0
    expected = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() / expected


def read(group: h5py.Group, name: str, path: Path) -> np.ndarray:
    """A whole dataset as an array; a UserError if it is missing or does not hold numbers."""
    stored = dataset(group, name, path)
    if stored.dtype.kind not in "biuf":
        raise UserError(f"{path}: the dataset {stored.name!r} holds {stored.dtype}; it must hold numbers")
    return np.asarray(stored[...])


def dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """The dataset of this name; a UserError if it is missing or is a group."""
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        where = f"{path}" if group.name == "/" else f"{path}, {group.name}"
        raise UserError(f"{where}: there is no dataset {name!r}; {nearest(name, list(group))}")
    return item


def place_of(key: str, keys: Collection[str]) -> str:
    """The name of the dataset that holds one of a shard's observation `keys`; a plain key is its own.

    HDF5 takes a slash for a group, and leaves out dots and what is empty. Such a key is percent-encoded after a `%`.
    """
    parts = key.split("/")
    plain = not key.startswith("%") and "\0" not in key and not {"", "."} & {*parts}
    above = {"/".join(parts[:i]) for i in range(1, len(parts))}
    return key if plain and above.isdisjoint(keys) else f"%{quote(key, safe='')}"


def observations_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Observation key -> dataset of a shard."""
    found: dict[str, h5py.Dataset] = {}

    def note(place: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[unquote(place[1:]) if place.startswith("%") else place] = item

    group = file.get("observations")
    if isinstance(group, h5py.Group):
        group.visititems(note)
    return found


def _datasets(group: h5py.Group, path: Path, prefix: str = "", visited: set[Any] | None = None) -> Iterator[Any]:
    """(name, dataset) of everything below a group; a UserError for any link that is not a hard one."""
    visited = set() if visited is None else visited
    if group in visited:
        raise UserError(f"{path}: the group {prefix!r} has several names: it lies in two groups, or in itself")
    visited.add(group)
    for name in map(str, group):
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = {h5py.SoftLink: "soft", h5py.ExternalLink: "external"}.get(type(link), "user-defined")
            raise UserError(f"{path}: {prefix + name!r} is a link ({kind}) to elsewhere, which is not followed")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, path, f"{prefix}{name}/", visited)
        elif isinstance(item, h5py.Dataset):
            yield prefix + name, item
