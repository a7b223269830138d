"""Columns turned into episodes by a schema: HDF5 files and tables share the words, and what they mean."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.readers.alignment import Rows, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.readers.schema import NEXT, SIGNALS, Names, Schema, each
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError


class Columns(Protocol):
    """The columns of a file, or of a group in it: what the names of a schema stand for."""

    def has(self, name: str) -> bool:
        """Whether there is a column of this name."""
        ...

    def rows(self, name: str) -> int:
        """How many rows a column has; a UserError with the nearest names if there is none."""
        ...

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows `start` to `stop` as numbers (N, ...), NaN where a cell is empty; a UserError if they are none."""
        ...

    def labels(self, name: str) -> np.ndarray:
        """All rows (N,) as numbers or text."""
        ...

    def place(self, name: str, row: int) -> str:
        """A row of a column in words, for error messages."""
        ...


@dataclass(frozen=True)
class Span:
    """Where one episode lies: rows `start` to `stop` (None: all) of the columns below `group`."""

    path: Path
    name: str  # of the episode, or its number
    group: str
    start: int
    stop: int | None

    @property
    def where(self) -> str:
        return f"{self.path.name}, episode {self.name}"


Opener = Callable[[Path], AbstractContextManager[Callable[[Span], Columns]]]  # file -> span -> its columns


def spaces_of(columns: Columns, span: Span, schema: Schema) -> tuple[dict[str, Json], Json]:
    """The leaves of the observations, and of the actions, from the shapes and types of an episode's columns."""

    def empty(names: Names) -> np.ndarray:
        is_action = names is schema.actions
        stored = [stored_name(columns, name) if is_action else name for name in each(names)]
        parts = [columns.read(name, 0, 0) for name in stored]
        return parts[0] if isinstance(names, str) else _vector(parts, each(names), span.where)

    leaves = {key: leaf_of(empty(names)) for key, names in schema.observations.items()}
    return leaves, action_leaf(_as_told(empty(schema.actions), schema, span.where))


def largest_action(opened: Opener, spans: list[Span], schema: Schema) -> int:
    """The largest of all discrete actions."""
    largest = 0
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with opened(path) as columns_of:
            for span in of_file:
                actions = columns_of(span).read(str(schema.actions), span.start, span.stop)
                largest = max(largest, int(np.nan_to_num(actions).max(initial=0)))
    return largest


def episodes_of(
    opened: Opener, spans: list[Span], schema: Schema, spaces: tuple[dict[str, Json], Json], rate: float
) -> Iterator[tuple[str, Episode]]:
    """(name, episode) of each span; a UserError that names the episode where its columns contradict the schema."""
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with opened(path) as columns_of:
            for span in of_file:
                columns = columns_of(span)
                rows = _rows(columns, span, schema)
                if schema.final_observation == "missing" and not len(rows.actions):
                    continue  # its only transition has no outcome, and counts among the dropped ones
                episode = episode_of(rows, schema.alignment, schema.outcomes, span.where, rate)
                check_spaces(episode, *spaces, span.where)
                if schema.non_finite == "error":
                    _check_finite(columns, span, schema, len(episode))
                yield span.where, episode


def _rows(columns: Columns, span: Span, schema: Schema) -> Rows:
    def read(names: Names) -> np.ndarray:
        parts = [columns.read(name, span.start, span.stop) for name in each(names)]
        return parts[0] if isinstance(names, str) else _vector(parts, each(names), span.where)

    observations = {key: read(names) for key, names in schema.observations.items()}
    for key, names in schema.next_observations.items():
        observations[key] = _with_final(observations[key], read(names), ", ".join(each(names)), span.where)
    length = len(next(iter(observations.values())))
    if span.stop is not None and length < span.stop - span.start:
        raise UserError(f"{span.where}: rows {span.start} to {span.stop} go beyond its {span.start + length} rows")
    others = {"actions": _actions(columns, span, schema, length)}
    others |= {what: read(name) for what in SIGNALS if (name := getattr(schema, what))}
    if schema.final_observation == "missing":
        for what, values in others.items():
            if len(values) != length or not length:
                raise UserError(
                    f"{span.where}: {length} observations and {len(values)} {what}; they must be as many where the"
                    " final observation is missing (with one observation more, it is 'included')"
                )
        others = {what: values[:-1] for what, values in others.items()}
    done = others.pop("done", None)
    if done is not None and "truncated" in others and "terminated" not in others:
        others["terminated"] = (np.nan_to_num(done) != 0) & (np.nan_to_num(others["truncated"]) == 0)
    return Rows(observations, **others)


def _actions(columns: Columns, span: Span, schema: Schema, length: int) -> np.ndarray:
    """The actions of an episode of `length` observations; of `u_next`, the last is a placeholder."""
    parts = []
    for name in each(schema.actions):
        stored = stored_name(columns, name)
        values = columns.read(stored, span.start, span.stop)
        if stored != name:
            if schema.alignment == "previous":
                raise UserError(
                    f"{span.where}: {name} is {stored} in the row below, which an action that led to its row"
                    f" (alignment: previous) cannot be: leave it out, {stored} alone acts at once"
                )
            if len(values) != length:
                raise UserError(
                    f"{span.where}: {name} needs a row of {stored} for each of the {length} observations, not"
                    f" {len(values)}: the last action reaches to the final one"
                )
            values = np.concatenate([values[1:], values[-1:]])
        parts.append(values)
    values = parts[0] if isinstance(schema.actions, str) else _vector(parts, schema.actions, span.where)
    return _as_told(values, schema, span.where)


def stored_name(columns: Columns, name: str) -> str:
    """The column in which an action's name is stored: `u` of `u_next`, unless there is a column `u_next`."""
    base = name.removesuffix(NEXT)
    return base if not columns.has(name) and columns.has(base) else name


def _as_told(actions: np.ndarray, schema: Schema, where: str) -> np.ndarray:
    """Actions as whole numbers if the schema calls them discrete, as quantities if it says that they are not."""
    if schema.discrete:
        if ((actions % 1 != 0) & np.isfinite(actions)).any():
            raise UserError(f"{where}: {schema.actions} is not a whole number throughout: leave out discrete: true")
        return np.nan_to_num(actions).astype(np.int64)
    return actions.astype(np.float64) if schema.discrete is False and actions.dtype.kind in "iub" else actions


def _vector(parts: Sequence[np.ndarray], names: Sequence[str], where: str) -> np.ndarray:
    """Columns (N, ...) side by side, (N, entries)."""
    lengths = {name: len(part) for name, part in zip(names, parts, strict=True)}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{where}: columns of one vector have different numbers of rows: {lengths}")
    flat = [part.reshape(len(part), int(np.prod(part.shape[1:]))) for part in parts]
    return np.concatenate(flat, axis=1)


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


def _check_finite(columns: Columns, span: Span, schema: Schema, steps: int) -> None:
    """Raise UserError naming the first value of an episode of `steps` transitions that is not finite."""
    observed = [*schema.observations.values(), *schema.next_observations.values()]
    used = [(name, 0, steps + 1) for names in observed for name in each(names)]  # column, first row, row after the last
    sides = [(name, schema.alignment) for name in each(schema.actions)]
    sides += [(name, schema.outcomes) for what in SIGNALS if (name := getattr(schema, what))]
    for name, side in sides:
        stored = stored_name(columns, name)
        rows = columns.rows(stored) if span.stop is None else span.stop - span.start
        first = int(stored != name or (side == "previous" and rows > steps))
        used.append((stored, first, first + steps))
    for name, first, stop in used:
        values = columns.read(name, span.start, span.stop)[first:stop]
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            what = "is empty or NaN" if np.isnan(values[row]).any() else "is infinite"
            raise UserError(
                f"{columns.place(name, span.start + first + row)} {what}: correct it, take other rows (rows: [first,"
                " stop] in the schema), or let it pass as NaN with non_finite: keep"
            )
