"""Episodes in HDF5 files of any layout: D4RL, robomimic, stable-worldmodel, or what a schema describes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episode import Episode, Reader, Source, fingerprint
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.readers.alignment import Rows, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.readers.hdf5_schema import EXAMPLE, Schema, known_layout, parse_schema
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

SUFFIXES = (".h5", ".hdf5")


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


def read_hdf5(path: Path, schema: dict[str, Any] | None = None) -> Source:
    """The episodes in an HDF5 file, or in all .h5 and .hdf5 files of a folder, which have the same layout.

    Args:
        path: file or folder.
        schema: see readers.hdf5_schema; None recognises D4RL, robomimic and stable-worldmodel by their keys.

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
        observation_space, action_space = _spaces(file, spans[0], layout)
    for other in files[1:]:
        with open_hdf5(other) as file:
            spans += _spans(file, other, layout)
    if action_space["type"] == "Discrete":
        action_space["n"] = 1 + _largest_action(spans, layout)
    if layout.final_observation == "missing":
        provenance |= {"dropped_transitions": len(spans), "dropped_because": "no observation follows them in the file"}
    stream = partial(_episodes, spans, layout, observation_space, action_space, rate)
    return Source(path, form, observation_space, action_space, layout.in_words, state, stream, provenance)


READER = Reader(
    looks_like="or an HDF5 file (.h5, .hdf5)",
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
    except (KeyError, ValueError, TypeError, AttributeError):
        return float("nan"), {}


def _spaces(file: h5py.File, first: Span, layout: Schema) -> tuple[dict[str, Json], Json]:
    """The leaves of the observations, and of the actions, from the shapes and types in the first episode."""

    def empty(name: str) -> np.ndarray:
        return _read(_column(file[first.group], name, first.path), 0, 0, f"{first.where}: {name}")

    leaves = {key: leaf_of(empty(name)) for key, name in layout.observations.items()}
    return leaves, action_leaf(empty(layout.actions))


def _largest_action(spans: list[Span], layout: Schema) -> int:
    largest = 0
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with open_hdf5(path) as file:
            for span in of_file:
                actions = _column(file[span.group], layout.actions, path)
                largest = max(largest, int(_read(actions, span.start, span.stop, span.where).max(initial=0)))
    return largest


def _episodes(
    spans: list[Span], layout: Schema, observation_space: dict[str, Json], action_space: Json, rate: float
) -> Iterator[tuple[str, Episode]]:
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with open_hdf5(path) as file:
            for span in of_file:
                rows = _rows(file, span, layout)
                if layout.final_observation == "missing" and not len(rows.actions):
                    continue  # its only transition has no outcome, and counts among the dropped ones
                episode = episode_of(rows, layout.alignment, layout.outcomes, span.where, rate)
                check_spaces(episode, observation_space, action_space, span.where)
                yield span.where, episode


def _rows(file: h5py.File, span: Span, layout: Schema) -> Rows:
    def read(name: str) -> np.ndarray:
        return _read(_column(file[span.group], name, span.path), span.start, span.stop, f"{span.where}: {name}")

    observations = {key: read(name) for key, name in layout.observations.items()}
    for key, name in layout.next_observations.items():
        observations[key] = _with_final(observations[key], read(name), name, span.where)
    length = len(next(iter(observations.values())))
    names = {what: getattr(layout, what) for what in ("actions", "rewards", "terminated", "truncated")}
    others = {what: read(name) for what, name in names.items() if name}
    if layout.final_observation == "missing":
        for what, values in others.items():
            if len(values) != length or not length:
                raise UserError(
                    f"{span.where}: {length} observations and {len(values)} {what}; they must be as many where the"
                    " final observation is missing (with one observation more, it is 'included')"
                )
        others = {what: values[:-1] for what, values in others.items()}
    return Rows(observations, **others)


def _with_final(values: np.ndarray, following: np.ndarray, name: str, where: str) -> np.ndarray:
    """Observations (N + 1, ...): `values` (N, ...) and the last of the observations that follow them."""
    if values.shape != following.shape:
        raise UserError(f"{where}: {name} has the shape {list(following.shape)}, observations {list(values.shape)}")
    inner, after = following[:-1], values[1:]
    close = (
        np.isclose(inner, after, rtol=1e-4, atol=1e-5, equal_nan=True) if values.dtype.kind == "f" else inner == after
    )
    steps = np.flatnonzero(~close.reshape(len(inner), -1).all(axis=1)) if len(inner) else []
    if len(steps):
        raise UserError(
            f"{where}: row {steps[0]} of {name} is not the observation of row {steps[0] + 1}: an episode ends"
            " between them that is not marked; mark it, or use a schema without next_observations"
        )
    return np.concatenate([values, following[-1:]])


def _spans(file: h5py.File, path: Path, layout: Schema) -> list[Span]:
    """The episodes in a file, in the order of their numbers; a UserError if lengths contradict each other."""
    if layout.groups:
        return _groups(file, path, layout.groups)
    rows = len(_column(file, layout.actions, path))
    for name in {*layout.observations.values(), *layout.next_observations.values()}:
        length = len(_column(file, name, path))
        if (layout.ends or layout.lengths) and length != rows:
            raise UserError(f"{path}: {name!r} has {length} rows, {layout.actions!r} {rows}: they must agree")
    if layout.ends:
        return _cut_by_flags(file, path, layout, rows)
    if layout.lengths:
        return _cut_by_lengths(file, path, layout.lengths, layout.offsets, rows)
    return [Span(path, "0", "/", 0, None)]


def _groups(file: h5py.File, path: Path, pattern: str) -> list[Span]:
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
    return [Span(path, name.split("/")[-1], name, 0, None) for name in by_number]


def _cut_by_flags(file: h5py.File, path: Path, layout: Schema, rows: int) -> list[Span]:
    is_end = np.zeros(rows, bool)
    for name in layout.ends:
        flags = _read(_column(file, name, path), 0, None, f"{path}: {name}")
        if flags.size != rows:
            raise UserError(f"{path}: {name!r} has {len(flags)} rows, {layout.actions!r} {rows}: they must agree")
        is_end |= flags.reshape(rows).astype(bool)
    cuts = [0, *(np.flatnonzero(is_end) + 1).tolist()]
    if cuts[-1] != rows:
        cuts.append(rows)  # the recording stopped in mid-episode
    if rows == 0:
        raise UserError(f"{path} holds no rows")
    return [Span(path, str(number), "/", *cut) for number, cut in enumerate(pairwise(cuts))]


def _cut_by_lengths(file: h5py.File, path: Path, length: str, offset: str | None, rows: int) -> list[Span]:
    lengths = _read(_column(file, length, path), 0, None, str(path)).reshape(-1).astype(np.int64)
    offsets = np.cumsum(lengths) - lengths
    if offset:
        offsets = _read(_column(file, offset, path), 0, None, str(path)).reshape(-1).astype(np.int64)
    if len(lengths) != len(offsets) or not len(lengths):
        raise UserError(f"{path}: {len(lengths)} {length!r}, but {len(offsets)} {offset!r}")
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


def _column(group: Any, name: str, path: Path) -> h5py.Dataset:
    """The dataset of this name below the group; a UserError that names the nearest if there is none."""
    item = group.get(name)
    if not isinstance(item, h5py.Dataset) or not item.shape:
        where = path.name if group.name == "/" else f"{path.name}, {group.name}"
        raise UserError(f"{where}: there is no dataset {name!r} with rows; {nearest(name, _shapes(group))}")
    return item


def _read(stored: h5py.Dataset, start: int, stop: int | None, where: str) -> np.ndarray:
    """Rows `start` to `stop` as numbers; a UserError if they are text or objects."""
    if stored.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {stored.dtype}, not numbers")
    return np.asarray(stored[start:stop])


def _shapes(group: h5py.Group) -> dict[str, list[int]]:
    """The shape of every dataset, by its path below the group."""
    shapes: dict[str, list[int]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = list(item.shape or ())

    group.visititems(note)
    return shapes
