"""Zarr stores, a folder or a .zip: those of diffusion_policy and UMI (`meta/episode_ends`), or by a schema.

What the arrays are is read from their JSON; the zarr package reads their values. Only codecs that turn bytes into bytes
are used, so that reading runs nothing.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worldmodel.data.episode import Reader, Source, fingerprint
from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.arrays import read_arrays
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.fields import Arrays, Stored
from worldmodel.data.readers.parquet import need
from worldmodel.data.spaces import Json, image_shape
from worldmodel.errors import UserError

METADATA = ("zarr.json", ".zarray", ".zgroup")
CODECS = {"blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma", "shuffle", "delta"}  # of version 2
CODECS |= {"bytes", "transpose", "crc32c", "sharding_indexed"}  # of version 3
FLOOR, EXPANSION = 64 << 20, 32_768  # bytes that any store may declare; above that: this many times its size
T = TypeVar("T")
CHUNK = 256 << 20  # most bytes of a chunk, which is unpacked as a whole


class ZarrArrays:
    """An open store as `Arrays`. Pictures that are kept as whole floats from 0 to 255 are pictures."""

    def __init__(self, path: Path, store: Any, metadata: dict[str, Json], held: int) -> None:
        self.path, self.store = path, store
        self.stored: dict[str, Stored] = {}
        self.codecs: dict[str, set[str]] = {}
        self.floats: set[str] = set()
        declared = 0
        for name, told in metadata.items():
            stored, chunk, self.codecs[name] = _described(told, f"{path}: {name}/")
            declared += (size := math.prod(stored.shape) * stored.dtype.itemsize)
            if declared > max(FLOOR, EXPANSION * held) or math.prod(chunk) * stored.dtype.itemsize > CHUNK:
                raise UserError(f"{path}: {name} declares {size:,} bytes, more than {held:,} bytes can hold")
            self.stored[name] = stored
        for name in [name for name, stored in self.stored.items() if _float_picture(stored)]:
            first = self.read(name, 0, 1)
            if first.max(initial=0) > 1 and _is_bytes(first):
                self.floats.add(name)
                self.stored[name] = Stored(self.stored[name].shape, np.dtype(np.uint8))

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        values = self.of(name, lambda array: np.asarray(array[start:stop]))
        if name not in self.floats:
            return values
        if not _is_bytes(values):
            odd = "some rows are no pictures of whole numbers from 0 to 255"
            raise UserError(f"{self.path}: {name}: {odd}: leave it out with --skip")
        return values.astype(np.uint8)

    def of(self, name: str, what: Callable[[Any], T]) -> T:
        """What a function takes from an array of the zarr package; a UserError if that cannot be read."""
        where = f"{self.path}: {name}"
        if unknown := self.codecs[name] - CODECS:
            raise UserError(f"{where} is compressed with {min(unknown)}, which is not read: leave it out with --skip")
        try:
            return what(need("zarr").open_array(self.store, path=name, mode="r"))
        except Exception as error:  # a damaged store makes zarr raise nearly anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{where} cannot be read: it is damaged ({type(error).__name__} {reason})") from error

    def labels(self, name: str) -> np.ndarray:
        raise UserError(f"{self.path}: {name} holds text, which is not read from zarr: use numbers")


def read_zarr(
    path: Path, schema: Json | None = None, choice: Choice | None = None, alignment: Side | None = None
) -> Source:
    """The episodes in a zarr store of version 2 or 3.

    Args:
        path: its folder, or a .zip file of it.
        schema: see readers.schema; None: the layout is recognised.
        choice: what the user names.
        alignment: of a row's action; None: as the layout suggests.

    Raises:
        UserError: if the layout is unknown, the schema does not fit, the store is damaged, or zarr is missing.
    """
    need("zarr", "zarr")
    files = sorted(file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else [path.resolve()]
    state = fingerprint(files, path if path.is_dir() else files[0].parent)
    how: dict[str, Any] = {"choice": choice or Choice(), "schema": schema, "alignment": alignment, "notes": _notes}
    return read_arrays(path, [path], partial(_opened, files), state, "zarr", **how)


READER = Reader(
    looks_like="a zarr store (.zarr, .zarr.zip)",
    recognises=lambda path: (
        any((path / name).is_file() for name in METADATA) or (path.name.endswith(".zarr.zip") and path.is_file())
    ),
    open=read_zarr,
    options=("schema", "choice", "alignment"),
    names=True,
)


@contextmanager
def _opened(files: list[Path], path: Path) -> Iterator[ZarrArrays]:
    storage = need("zarr.storage")
    try:
        if path.is_dir():
            texts = {str(f.relative_to(path)): f.read_text(encoding="utf-8") for f in files if f.name in METADATA}
            held = sum(file.stat().st_size for file in files)
            yield ZarrArrays(path, storage.LocalStore(path, read_only=True), _arrays(texts, path), held)
            return
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.split("/")[-1] in METADATA]
            texts = {info.filename: archive.open(info).read(1 << 20).decode() for info in infos}
        store = storage.ZipStore(path, mode="r", read_only=True)
        try:
            yield ZarrArrays(path, store, _arrays(texts, path), path.stat().st_size)
        finally:
            store.close()
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as zarr: it is damaged ({error})") from error


def _arrays(texts: dict[str, str], path: Path) -> dict[str, Json]:
    """Array -> its metadata, from the JSON files of a store."""
    found: dict[str, Json] = {}
    for file, text in sorted(texts.items()):
        try:
            told = json.loads(text)
            name, is_v2 = file.rpartition("/")[0], file.endswith(".zarray")
            if is_v2 or (isinstance(told, dict) and told.get("node_type") == "array"):
                found[name] = told
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: {file} is no JSON ({error}): it is damaged") from None
    return found


def _described(told: Json, where: str) -> tuple[Stored, list[int], set[str]]:
    """(shape and dtype, the shape of a chunk, the names of the codecs) of an array, by its metadata."""
    try:
        if told.get("zarr_format") == 2:
            codecs = {codec["id"] for codec in (told["compressor"], *(told["filters"] or ())) if codec}
            kind, chunk = told["dtype"], told["chunks"]
        else:
            codecs, kind = _names(told["codecs"]), told["data_type"]
            chunk = told["chunk_grid"]["configuration"]["chunk_shape"]
        shape = told["shape"]
        if not all(type(size) is int and size >= 0 for size in [*shape, *chunk]):
            raise ValueError(f"shape {shape}, chunks {chunk}")
        dtype = np.dtype(kind) if isinstance(kind, str) and kind != "string" else np.dtype(object)
        return Stored(tuple(shape), dtype), chunk, codecs
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: its metadata cannot be read ({type(error).__name__} {error})") from None


def _names(codecs: list[Json]) -> set[str]:
    """The names of codecs of version 3, and of those inside a shard."""
    found = {codec["name"] for codec in codecs}
    for codec in codecs:
        for inner in ("codecs", "index_codecs"):
            found |= _names((codec.get("configuration") or {}).get(inner) or [])
    return found


def _float_picture(stored: Stored) -> bool:
    as_bytes = {"type": "Box", "dtype": "uint8", "shape": list(stored.shape[1:])}
    return stored.dtype.kind == "f" and len(stored.shape) == 4 and image_shape(as_bytes) is not None


def _is_bytes(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values % 1 == 0)).all())


def _notes(arrays: Arrays, path: Path) -> tuple[float, Json]:
    """The rate is unknown; chunks that are not there are told, since zarr reads them as its fill value."""
    assert isinstance(arrays, ZarrArrays), "opened here"
    known = [name for name, codecs in arrays.codecs.items() if not codecs - CODECS]
    missing = {name: arrays.of(name, lambda array: array.nchunks - array.nchunks_initialized) for name in known}
    lost = {name: f"{count} chunks are not there, and read as zeros" for name, count in missing.items() if count}
    return float("nan"), {"missing": lost} if lost else {}
