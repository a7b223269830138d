"""Tables by a schema: CSV, Parquet and MATLAB files, whose columns are what the schema's names stand for.

A file, or several of one kind with the same columns: a folder's, or those that a pattern such as `lab/run-*.csv`
matches. While a file's episodes are read, the columns that the schema names are held in memory, eight bytes a cell.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from worldmodel.data.episode import Reader, Source, fingerprint
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.schema import Schema, chosen, each, parse_schema
from worldmodel.data.readers.schema_episodes import Span, episodes_of, largest_action, spaces_of
from worldmodel.data.readers.schema_spans import spans_of
from worldmodel.data.readers.table_csv import SUFFIXES as CSV
from worldmodel.data.readers.table_csv import CsvFile
from worldmodel.data.readers.table_mat import SUFFIXES as MAT
from worldmodel.data.readers.table_mat import MatFile
from worldmodel.data.readers.table_parquet import SUFFIXES as PARQUET
from worldmodel.data.readers.table_parquet import ParquetFile
from worldmodel.data.readers.table_start import first_schema
from worldmodel.errors import UserError

Table = CsvFile | ParquetFile | MatFile
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Path, Sequence[str]], Table]]] = {
    "csv": (CSV, CsvFile),
    "parquet": (PARQUET, ParquetFile),
    "mat": (MAT, MatFile),
}


def read_table(path: Path, schema: dict[str, Any] | None = None, choice: Choice | None = None) -> Source:
    """The episodes in a table, in all tables of a folder, or in those that a pattern matches.

    Args:
        path: file, folder, or a folder and a pattern of file names. All files are of one kind.
        schema: see readers.schema; None is an error that shows the columns found, and a schema to start from.
        choice: what the user names, in the place of what the schema says.

    Raises:
        UserError: if there is no schema or it does not fit, a file is damaged, or a value is no number.
    """
    files = _files(path)
    form, layout = _described(path, files, schema, choice or Choice())
    actual = [file.resolve() for file in files] if path.is_file() else files  # the path may be a link
    state = fingerprint(actual, actual[0].parent)
    found = [span for file in files for span in spans_of(_open(file, layout.ends), file, layout)]
    fewest = 1 if layout.final_observation == "next_observations" else 2
    spans = [span for span in found if span.stop is None or span.stop - span.start >= fewest]
    if not spans:
        raise UserError(f"{path}: no episode has a transition: each is a single row")
    spaces = spaces_of(_open(spans[0].path, layout.names), spans[0], layout)
    if spaces[1]["type"] == "Discrete":
        spaces[1]["n"] = 1 + largest_action(partial(_opened, each(layout.actions)), spans, layout)
    about: dict[str, Any] = {"files": len(files), "episodes_without_transition": len(found) - len(spans)}
    if layout.final_observation == "missing":
        about |= {"dropped_transitions": len(spans), "dropped_because": "no observation follows them in the file"}
    stream = partial(episodes_of, partial(_opened, layout.names), spans, layout, spaces, layout.rate)
    return Source(path, form, *spaces, layout.in_words, state, stream, about)


READER = Reader(
    looks_like="or tables (.csv, .parquet, .mat)",
    recognises=lambda path: bool(_files(path)),
    open=read_table,
    options=("schema", "choice"),
    names=True,
)


def _described(path: Path, files: list[Path], schema: dict[str, Any] | None, choice: Choice) -> tuple[str, Schema]:
    """The kind of the tables, and their schema, checked."""
    if not files:
        suffixes = [suffix for of_kind, _ in KINDS.values() for suffix in of_kind]
        raise UserError(f"{path}: there is no table here ({', '.join(suffixes)})")
    kinds = sorted({_kind(file) for file in files})
    if len(kinds) > 1:
        raise UserError(f"{path} holds {' and '.join(kinds)} files: choose one kind, '{path}/*.{kinds[0]}' for example")
    sample = _open(files[0], ()).sample()
    start = first_schema(sample)
    if schema is None:
        raise UserError(
            f"{path} needs a schema, which says what its columns are ({_listed(list(sample))}): write this line to a"
            f" file, correct it, and name the file with --schema: {start}"
        )
    layout = chosen(parse_schema(schema, "the schema", start), choice, path, list(sample))
    if layout.groups:
        raise UserError("the schema: episodes: groups are of HDF5 files; tables have column, ends or lengths")
    return kinds[0], replace(layout, discrete=bool(layout.discrete), non_finite=layout.non_finite or "error")


def _files(path: Path) -> list[Path]:
    """The tables at a path, sorted by name; none if it is something else."""
    if path.is_dir():
        files = path.iterdir()
    else:
        files = path.parent.glob(path.name) if not path.exists() and glob.has_magic(path.name) else [path]
    return sorted(file for file in files if file.is_file() and _kind(file))


def _kind(file: Path) -> str:
    """The kind of table that a file's name stands for; empty if it is none."""
    name = file.name.lower()
    return next((kind for kind, (suffixes, _) in KINDS.items() if name.endswith(suffixes)), "")


def _open(file: Path, wanted: Sequence[str]) -> Table:
    return KINDS[_kind(file)][1](file, wanted)


@contextmanager
def _opened(wanted: Sequence[str], file: Path) -> Iterator[Callable[[Span], Table]]:
    table = _open(file, wanted)
    yield lambda span: table


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
