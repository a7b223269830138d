"""Columns of a LeRobotDataset's Parquet files as arrays: numbers, and pictures stored beside them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import UserError

FLOOR, EXPANSION = 64 << 20, 1100  # bytes that any file may declare; beyond: times its size
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names of 1, 3 and 4 channels
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}  # bytes a value, once decoded


@dataclass(frozen=True)
class Feature:
    name: str  # in info.json and in the files
    kind: str  # array, image (in Parquet) or video (in MP4)
    shape: tuple[int, ...]  # of one row; (H, W, C) for pictures
    dtype: str


@contextmanager
def open_parquet(file: Path, names: list[str]) -> Iterator[Any]:
    """A Parquet file, open; a UserError where it is damaged, lacks a column or declares more than it can hold."""
    pq = need("pyarrow.parquet")
    with readable(file):
        reader = pq.ParquetFile(file, page_checksum_verification=True)
    with reader:
        meta, size, declared = reader.metadata, file.stat().st_size, 0
        if missing := set(names) - set(reader.schema_arrow.names):
            raise UserError(f"{file}: there is no column {min(missing)!r}")
        for i in range(meta.num_columns):
            if meta.schema.column(i).path.startswith(tuple(names)):
                width = WIDTHS.get(meta.schema.column(i).physical_type, 0)
                chunks = [meta.row_group(group).column(i) for group in range(meta.num_row_groups)]
                # a dictionary can repeat a value for nothing: what the values take once decoded counts too
                declared += sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk in chunks)
        if declared > max(FLOOR, EXPANSION * size):
            raise UserError(f"{file} declares {declared:,} bytes, more than a file of {size:,} bytes can hold")
        yield reader


@contextmanager
def readable(where: Any) -> Iterator[str]:
    """Turn what pyarrow raises in the block into a UserError that begins with `where`."""
    pa = need("pyarrow")
    try:
        yield str(where)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{where}: the file is missing") from None
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: it cannot be read as Parquet: it is damaged ({reason})") from error


def values_of(column: Any, feature: Feature, where: str) -> np.ndarray:
    """A column of N rows as an array (N, *shape)."""
    if feature.kind == "image":
        return _pictures(column, feature, where)
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    values, sizes, name = column.combine_chunks(), [], feature.name
    where = f"{where}: the column {name!r}"
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise UserError(f"{where} has rows of {lengths} numbers; each must have the shape {list(feature.shape)}")
        sizes += lengths
        values = values.flatten()
    if values.null_count:
        raise UserError(f"{where} has rows without a value")
    numbers = values.to_numpy(zero_copy_only=False)
    if len(column) and tuple(sizes) != feature.shape and (sizes or math.prod(feature.shape) != 1):
        raise UserError(f"{where} has rows of the shape {sizes}; meta/info.json tells {list(feature.shape)}")
    if not np.can_cast(numbers.dtype, feature.dtype, "same_kind"):
        raise UserError(f"{where} holds {numbers.dtype}; meta/info.json tells {feature.dtype}")
    return numbers.astype(feature.dtype).reshape(len(column), *feature.shape)


def _pictures(column: Any, feature: Feature, where: str) -> np.ndarray:
    """A column of N pictures, PNG or JPEG, as (N, H, W, C). Their bytes are read, their `path` never."""
    image = need("PIL.Image")
    height, width, channels = feature.shape
    frames = np.empty((0, *feature.shape), np.uint8)
    for t, cell in enumerate(column):
        stored = cell.as_py()
        data = stored.get("bytes") if isinstance(stored, dict) else stored
        spot = f"{where}, step {t}: the image {feature.name!r}"
        if not isinstance(data, bytes):
            raise UserError(f"{spot} is not in the Parquet file (files that it names are not read)")
        try:
            with image.open(BytesIO(data), formats=["PNG", "JPEG"]) as picture:
                size = picture.size  # known before anything is decoded
                if size == (width, height):
                    frames = frames if len(frames) else np.empty((len(column), *feature.shape), np.uint8)
                    frames[t] = np.asarray(picture.convert(MODES[channels])).reshape(feature.shape)
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise UserError(f"{spot} is damaged, or neither PNG nor JPEG ({error})") from error
        if size != (width, height):
            raise UserError(f"{spot} is {size[1]} x {size[0]} pixels; meta/info.json tells {height} x {width}")
    return frames


def need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"a LeRobot dataset is read with {module}: pip install 'worldmodel[lerobot]'") from error
