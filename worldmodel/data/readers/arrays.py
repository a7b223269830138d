"""Files of named arrays as episodes: HDF5, npz and zarr differ in how they are opened, and in nothing else."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Source
from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.fields import Arrays
from worldmodel.data.readers.layouts import Layout, layout_of
from worldmodel.data.readers.schema import Schema, chosen, parse_schema
from worldmodel.data.readers.schema_episodes import Span, episodes_of, largest_action, spaces_of
from worldmodel.data.readers.schema_spans import spans_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

Opened = Callable[[Path], AbstractContextManager[Arrays]]
Notes = Callable[[Arrays, Path], tuple[float, Json]]  # steps a second (NaN: unknown), provenance


@dataclass(frozen=True)
class Group:
    """The arrays of a file, or of a group in it, as `Columns`."""

    arrays: Arrays
    group: str  # "", or a path without a slash at either end
    path: Path
    where: str  # for error messages: the file, or the episode

    def has(self, name: str) -> bool:
        stored = self.arrays.stored.get(self._full(name))
        return stored is not None and bool(stored.shape)

    def rows(self, name: str) -> int:
        return self.arrays.stored[self._checked(name)].shape[0]

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        full = self._checked(name)
        if self.arrays.stored[full].rows < 0:
            raise UserError(f"{self.where}: {name} holds {self.arrays.stored[full].dtype}, not numbers")
        return self.arrays.read(full, start, stop)

    def labels(self, name: str) -> np.ndarray:
        full = self._checked(name)
        stored = self.arrays.stored[full]
        if stored.rows >= 0:
            return self.arrays.read(full, 0, None).reshape(stored.shape[0], -1)[:, 0]
        if stored.dtype.kind not in "SUO" or len(stored.shape) != 1:
            raise UserError(f"{self.where}: {name} holds {stored.dtype} {list(stored.shape)}, no number or text a row")
        return np.asarray(self.arrays.labels(full), dtype=str)

    def place(self, name: str, row: int) -> str:
        return f"{self.where}: row {row} of {name!r}"

    def _full(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name

    def _checked(self, name: str) -> str:
        if not self.has(name):
            where = f"{self.path.name}, /{self.group}" if self.group else self.path.name
            names = [one.removeprefix(f"{self.group}/") for one in self.arrays.stored if one.startswith(self.group)]
            raise UserError(f"{where}: there is no dataset {name!r} with rows; {nearest(name, names)}")
        return self._full(name)


def read_arrays(
    path: Path,
    files: list[Path],
    opened: Opened,
    state: str,
    kind: str,
    *,
    choice: Choice,
    schema: Json | None,
    alignment: Side | None = None,
    notes: Notes | None = None,
) -> Source:
    """The episodes in files of one layout.

    Args:
        path: of the dataset.
        files: one or more, which `opened` opens.
        state: the fingerprint of their content.
        kind: of the files.
        choice: what the user names.
        schema: see readers.schema; None: the layout is recognised, see readers.layouts.
        alignment: of a row's action in files that are recognised; None: as their rows suggest.
        notes: reads what else a file tells, from it and its path.

    Raises:
        UserError: if the layout is unknown, the schema has a mistake or does not fit, or a file is damaged.
    """
    if schema is not None and alignment is not None:
        raise UserError(f"{path}: the schema says how its actions are aligned: leave out --alignment")
    with opened(files[0]) as arrays:  # opened once, since opening checks every array
        if schema is None:
            found = layout_of(arrays, choice, alignment, kind, str(files[0]), len(files) > 1)
            layout = parse_schema(found.schema, f"{path}: its schema")
        else:
            layout = parse_schema(schema, "the schema")
            layout = chosen(layout, choice, path, [] if layout.groups else [*arrays.stored])
            found = Layout("schema", schema)
        rate, about = notes(arrays, files[0]) if notes else (float("nan"), {})
        spans = _spans(arrays, files[0], layout)
        spaces = spaces_of(_columns(arrays, spans[0]), spans[0], layout)
    for other in files[1:]:
        with opened(other) as arrays:
            spans += _spans(arrays, other, layout)
    by_span = partial(_opened, opened)
    if spaces[1]["type"] == "Discrete":
        spaces[1]["n"] = 1 + largest_action(by_span, spans, layout)
    if layout.final_observation == "missing":
        about |= {"dropped_transitions": len(spans), "dropped_because": "no observation follows them in the file"}
    if found.left_out:
        about["left_out"] = {name: "--observations reads it" for name in found.left_out}
    if layout.done and not layout.truncated and not layout.terminated:
        about["ends"] = f"{layout.done!r} says that an episode ended, not why: read as a cut (a schema can say more)"
    rate = rate if np.isnan(layout.rate) else layout.rate
    stream = partial(episodes_of, by_span, spans, layout, spaces, rate)
    return Source(path, found.form, *spaces, layout.in_words, state, stream, about)


def _columns(arrays: Arrays, span: Span) -> Group:
    return Group(arrays, span.group.strip("/"), span.path, span.where)


@contextmanager
def _opened(opened: Opened, path: Path) -> Iterator[Callable[[Span], Group]]:
    with opened(path) as arrays:
        yield partial(_columns, arrays)


def _spans(arrays: Arrays, path: Path, layout: Schema) -> list[Span]:
    if layout.groups is None:
        return spans_of(Group(arrays, "", path, str(path)), path, layout)
    levels = layout.groups.split("/")
    above = {"/".join(name.split("/")[: len(levels)]) for name in arrays.stored if name.count("/") >= len(levels)}
    groups = [name for name in above if all(map(fnmatchcase, name.split("/"), levels))]
    if not groups:
        parts = [name.split("/") for name in arrays.stored]
        names = {"/".join(part[:depth]) for part in parts for depth in range(1, len(part))}
        raise UserError(f"{path}: no group matches {layout.groups!r}; {nearest(layout.groups, sorted(names))}")
    by_number = sorted(groups, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    return [Span(path, name.split("/")[-1], name, *layout.rows) for name in by_number]
