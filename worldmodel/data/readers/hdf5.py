"""Episodes in HDF5 files of any layout: D4RL, robomimic, stable-worldmodel, or what a schema describes."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episode import Reader, Source, fingerprint
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.readers.hdf5_layouts import known_layout
from worldmodel.data.readers.schema import EXAMPLE, Schema, parse_schema
from worldmodel.data.readers.schema_episodes import Span, episodes_of, largest_action, spaces_of
from worldmodel.data.readers.schema_spans import spans_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Datasets:
    """The datasets of a file, or of a group in it, as `Columns`."""

    group: Any  # h5py.Group
    path: Path
    where: str  # for error messages: the file, or the episode

    def has(self, name: str) -> bool:
        item = self.group.get(name)
        return isinstance(item, h5py.Dataset) and bool(item.shape)

    def rows(self, name: str) -> int:
        return len(self._dataset(name))

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        stored = self._dataset(name)
        if stored.dtype.kind not in "biuf":
            raise UserError(f"{self.where}: {name} holds {stored.dtype}, not numbers")
        return np.asarray(stored[start:stop])

    def labels(self, name: str) -> np.ndarray:
        stored = self._dataset(name)
        if stored.dtype.kind in "biuf":
            return stored[...].reshape(len(stored), -1)[:, 0]
        if h5py.check_string_dtype(stored.dtype) is None or stored.ndim != 1:
            raise UserError(f"{self.where}: {name} holds {stored.dtype} {list(stored.shape)}, no number or text a row")
        return np.asarray(stored.asstr()[...], dtype=str)

    def place(self, name: str, row: int) -> str:
        return f"{self.where}: row {row} of {name!r}"

    def _dataset(self, name: str) -> h5py.Dataset:
        item = self.group.get(name)
        if not isinstance(item, h5py.Dataset) or not item.shape:
            where = self.path.name if self.group.name == "/" else f"{self.path.name}, {self.group.name}"
            raise UserError(f"{where}: there is no dataset {name!r} with rows; {nearest(name, _shapes(self.group))}")
        return item


def read_hdf5(path: Path, schema: dict[str, Any] | None = None) -> Source:
    """The episodes in an HDF5 file, or in all .h5 and .hdf5 files of a folder, which have the same layout.

    Args:
        path: file or folder.
        schema: see readers.schema; None recognises D4RL, robomimic and stable-worldmodel by their keys.

    Raises:
        UserError: if the layout is unknown, the schema has a mistake or does not fit, or a file is damaged.
    """
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{path}: there is no .h5 or .hdf5 file" if path.is_dir() else f"{path} does not exist")
    root = path if path.is_dir() else path.resolve().parent
    files = files if path.is_dir() else [path.resolve()]  # the path may be a link
    state = fingerprint(files, root)
    with open_hdf5(files[0]) as file:  # opened once, since opening checks every dataset
        form, raw = ("schema", schema) if schema is not None else _recognised(file, files[0])
        layout = parse_schema(raw, f"{path}: its schema" if schema is None else "the schema")
        rate, provenance = _robomimic_notes(file) if form == "robomimic" else (layout.rate, {})
        spans = _spans(file, files[0], layout)
        spaces = spaces_of(Datasets(file[spans[0].group], files[0], spans[0].where), spans[0], layout)
    for other in files[1:]:
        with open_hdf5(other) as file:
            spans += _spans(file, other, layout)
    if spaces[1]["type"] == "Discrete":
        spaces[1]["n"] = 1 + largest_action(_opened, spans, layout)
    if layout.final_observation == "missing":
        provenance |= {"dropped_transitions": len(spans), "dropped_because": "no observation follows them in the file"}
    stream = partial(episodes_of, _opened, spans, layout, spaces, rate)
    return Source(path, form, *spaces, layout.in_words, state, stream, provenance)


READER = Reader(
    looks_like="an HDF5 file (.h5, .hdf5)",
    recognises=lambda path: (
        path.suffix in SUFFIXES or (path.is_dir() and any(file.suffix in SUFFIXES for file in path.iterdir()))
    ),
    open=read_hdf5,
    options=("schema",),
)


def _recognised(file: h5py.File, path: Path) -> tuple[str, Json]:
    known = known_layout(file)
    if known is None:
        listed = [f"{name} {shape}" for name, shape in _shapes(file).items()]
        more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
        raise UserError(
            f"{path} is laid out as neither D4RL, robomimic nor stable-worldmodel; it holds {', '.join(listed[:12])}"
            f"{more}. Describe it by a schema such as {EXAMPLE}"
        )
    return known


def _robomimic_notes(file: h5py.File) -> tuple[float, Json]:
    """(steps per second, provenance) as far as robomimic's `env_args` record them."""
    group: Any = file["data"]
    try:
        arguments = json.loads(group.attrs["env_args"])
        rate = float(arguments.get("env_kwargs", {}).get("control_freq") or "nan")
        return rate, {"env_id": str(arguments["env_name"])}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return float("nan"), {}


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[Span], Datasets]]:
    with open_hdf5(path) as file:
        yield lambda span: Datasets(file[span.group], path, span.where)


def _spans(file: h5py.File, path: Path, layout: Schema) -> list[Span]:
    if layout.groups:
        return _groups(file, path, layout.groups, layout.rows)
    return spans_of(Datasets(file, path, str(path)), path, layout)


def _groups(file: h5py.File, path: Path, pattern: str, rows: tuple[int, int | None]) -> list[Span]:
    groups: dict[str, h5py.Group] = {"": file}
    for level in pattern.split("/"):
        groups = {
            f"{above}/{name}": item
            for above, group in groups.items()
            for name, item in group.items()
            if isinstance(item, h5py.Group) and fnmatchcase(name, level)
        }
    if not groups:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Group) else None)
        raise UserError(f"{path}: no group matches {pattern!r}; {nearest(pattern, names)}")
    by_number = sorted(groups, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    return [Span(path, name.split("/")[-1], name, *rows) for name in by_number]


def _shapes(group: h5py.Group) -> dict[str, list[int]]:
    """The shape of every dataset, by its path below the group."""
    shapes: dict[str, list[int]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = list(item.shape or ())

    group.visititems(note)
    return shapes
