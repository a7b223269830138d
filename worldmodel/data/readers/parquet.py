"""Parquet files from anywhere, opened so that a file which declares more than it can hold is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError

FLOOR, EXPANSION = 64 << 20, 1100  # bytes that any file may declare; above that: this many times its size
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 12}  # bytes per decoded value


@contextmanager
def open_parquet(file: Path, names: list[str]) -> Iterator[Any]:
    """A Parquet file, open; a UserError if it is damaged, lacks a column or declares more than it can hold."""
    pq = need("pyarrow.parquet")
    with readable(file):
        reader = pq.ParquetFile(file, page_checksum_verification=True)
    with reader:
        meta, declared = reader.metadata, 0
        if missing := set(names) - set(reader.schema_arrow.names):
            raise UserError(f"{file}: there is no column {min(missing)!r}")
        for i in range(meta.num_columns):
            if meta.schema.column(i).path.startswith(tuple(names)):
                width = WIDTHS.get(meta.schema.column(i).physical_type, 0)
                chunks = [meta.row_group(group).column(i) for group in range(meta.num_row_groups)]
                # a dictionary repeats a value at no cost, so the size of the decoded values counts too
                declared += sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk in chunks)
        check_declared(file, declared)
        yield reader


def check_declared(file: Path, declared: int) -> None:
    """Raise UserError if a file declares more bytes than its size can unpack to."""
    if declared > max(FLOOR, EXPANSION * (size := file.stat().st_size)):
        raise UserError(f"{file} declares {declared:,} bytes, more than a file of {size:,} bytes can hold")


@contextmanager
def readable(where: Any) -> Iterator[str]:
    """Turn errors of pyarrow in the block into a UserError that begins with `where`."""
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


def need(module: str, extra: str = "parquet") -> Any:
    """An optional package, imported; a UserError says how to install it: which extra of this program has it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"such data is read with {module}: pip install 'worldmodel[{extra}]'") from error
