"""Where each episode of an HDF5 file lies, by what its schema says."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from worldmodel.data.readers.schemas import Schema
from worldmodel.errors import UserError, nearest


@dataclass(frozen=True)
class Span:
    """Where one episode lies: rows `start` to `stop` (None: all) of the datasets below `group`."""

    path: Path
    name: str  # of the episode, or its number
    group: str
    start: int
    stop: int | None

    @property
    def where(self) -> str:
        return f"{self.path.name}, episode {self.name}"


def spans_of(file: h5py.File, path: Path, layout: Schema) -> list[Span]:
    """The episodes in a file, in the order of their numbers.

    Raises:
        UserError: if a dataset is missing, or lengths contradict each other.
    """
    if layout.groups:
        return _grouped(file, path, layout)
    rows = len(column(file, layout.actions, path))
    for name in {*layout.observations.values(), *layout.next_observations.values()}:
        found = len(column(file, name, path))
        if (layout.ends or layout.lengths) and found != rows:
            raise UserError(f"{path}: {name!r} has {found} rows, {layout.actions!r} {rows}: they must agree")
    if layout.ends:
        return _cut_by_flags(file, path, layout, rows)
    if layout.lengths:
        return _cut_by_lengths(file, path, layout, rows)
    return [Span(path, "0", "/", 0, None)]


def _grouped(file: h5py.File, path: Path, layout: Schema) -> list[Span]:
    groups: dict[str, h5py.Group] = {"": file}
    for level in str(layout.groups).split("/"):
        groups = {
            f"{above}/{name}": item
            for above, group in groups.items()
            for name, item in group.items()
            if isinstance(item, h5py.Group) and fnmatchcase(name, level)
        }
    if not groups:
        raise UserError(
            f"{path}: no group matches {layout.groups!r}; {nearest(str(layout.groups), _group_names(file))}"
        )
    by_number = sorted(groups, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    return [Span(path, name.split("/")[-1], name, 0, None) for name in by_number]


def _cut_by_flags(file: h5py.File, path: Path, layout: Schema, rows: int) -> list[Span]:
    is_end = np.zeros(rows, bool)
    for name in layout.ends:
        flags = read_rows(column(file, name, path), 0, None, f"{path}: {name}")
        if flags.size != rows:
            raise UserError(f"{path}: {name!r} has {len(flags)} rows, {layout.actions!r} {rows}: they must agree")
        is_end |= flags.reshape(rows).astype(bool)
    cuts = [0, *(np.flatnonzero(is_end) + 1).tolist()]
    if cuts[-1] != rows:
        cuts.append(rows)  # the recording ended in mid-episode
    if rows == 0:
        raise UserError(f"{path} holds no rows")
    return [Span(path, str(number), "/", *cut) for number, cut in enumerate(pairwise(cuts))]


def _cut_by_lengths(file: h5py.File, path: Path, layout: Schema, rows: int) -> list[Span]:
    lengths = read_rows(column(file, str(layout.lengths), path), 0, None, str(path)).reshape(-1).astype(np.int64)
    offsets = np.cumsum(lengths) - lengths
    if layout.offsets:
        offsets = read_rows(column(file, layout.offsets, path), 0, None, str(path)).reshape(-1).astype(np.int64)
    if len(lengths) != len(offsets) or not len(lengths):
        raise UserError(f"{path}: {len(lengths)} {layout.lengths!r}, but {len(offsets)} {layout.offsets!r}")
    order = np.argsort(offsets, kind="stable")
    edges = np.append(offsets[order], rows)[1:]
    wrong = np.flatnonzero((lengths[order] < 1) | (offsets[order] < 0) | (offsets[order] + lengths[order] > edges))
    if len(wrong):
        number = int(order[wrong[0]])
        raise UserError(
            f"{path.name}, episode {number}: rows {offsets[number]} to {offsets[number] + lengths[number]} are empty,"
            f" overlap with the next episode's, or go beyond the {rows} rows of the file"
        )
    return [Span(path, str(i), "/", int(offsets[i]), int(offsets[i] + lengths[i])) for i in range(len(lengths))]


def column(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """The dataset of this name below the group.

    Raises:
        UserError: if there is none, naming the nearest that there is.
    """
    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        where = path.name if group.name == "/" else f"{path.name}, {group.name}"
        raise UserError(f"{where}: there is no dataset {name!r} with rows; {nearest(name, dataset_shapes(group))}")
    return found


def read_rows(stored: h5py.Dataset, start: int, stop: int | None, where: str) -> np.ndarray:
    """Rows `start` to `stop` as numbers; a UserError where they are text or objects."""
    if stored.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {stored.dtype}, not numbers")
    return np.asarray(stored[start:stop])


def dataset_shapes(group: h5py.Group) -> dict[str, list[int]]:
    """Path below the group -> shape of every dataset."""
    found: dict[str, list[int]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = list(item.shape or ())

    group.visititems(note)
    return found


def _group_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Group) else None)
    return names
