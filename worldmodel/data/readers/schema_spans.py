"""Where the episodes lie in the rows of a file, by the words `episodes` and `rows` of a schema."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from worldmodel.data.readers.schema import Schema, each
from worldmodel.data.readers.schema_episodes import Columns, Span, stored_name
from worldmodel.errors import UserError


def spans_of(columns: Columns, path: Path, schema: Schema) -> list[Span]:
    """The episodes in a file without groups, in the order of their rows (of their numbers where these are stored).

    Raises:
        UserError: if a column is missing, the columns differ in length, or what cuts them contradicts itself.
    """
    actions = each(schema.actions)
    stored = {name: stored_name(columns, name) if name in actions else name for name in schema.names}
    lengths = {name: columns.rows(stored[name]) for name in schema.names}
    rows = lengths[actions[0]]
    cut = schema.column or schema.ends or schema.lengths or schema.stops
    for name, length in lengths.items():
        if cut and length != rows:
            raise UserError(f"{path}: {name!r} has {length} rows, {actions[0]!r} {rows}: they must agree")
    rows = rows if cut else max(lengths.values())
    if rows == 0:
        raise UserError(f"{path} holds no rows")
    start, stop = schema.rows[0], rows if schema.rows[1] is None else schema.rows[1]
    if not start < stop <= rows:
        raise UserError(f"{path} has {rows:,} rows: rows {list(schema.rows)} in the schema go beyond them")
    if schema.column:
        return _by_label(columns, schema.column, start, stop, path)
    if schema.ends:
        return _by_flags(columns, schema.ends, start, stop, path)
    if schema.stops:
        return _by_stops(columns, schema.stops, start, stop, path)
    if isinstance(schema.lengths, str):
        return _by_stored_lengths(columns, schema.lengths, schema.offsets, start, stop, path)
    if schema.lengths:
        return _by_lengths(schema.lengths, start, stop, path)
    whole = len(set(lengths.values())) == 1
    return [Span(path, "0", "/", start, stop if whole else schema.rows[1])]


def _between(cuts: list[int], path: Path) -> list[Span]:
    return [Span(path, str(number), "/", *cut) for number, cut in enumerate(pairwise(cuts))]


def _by_label(columns: Columns, name: str, start: int, stop: int, path: Path) -> list[Span]:
    columns.rows(name)
    labels = columns.labels(name)[start:stop]
    if len(labels) != stop - start:
        raise UserError(f"{path}: {name!r} has {start + len(labels)} rows: too few to name the episode of each")
    empty = np.isnan(labels) if labels.dtype.kind == "f" else labels == ""
    if np.any(empty):
        raise UserError(
            f"{columns.place(name, start + int(np.argmax(empty)))} is empty: it must name the row's episode"
        )
    begins = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist()]
    spans: dict[str, Span] = {}
    for begin, end in pairwise([*begins, len(labels)]):
        label = labels[begin]
        text = f"{label:g}" if labels.dtype.kind == "f" else str(label)
        if text in spans:
            raise UserError(
                f"{columns.place(name, start + begin)}: the episode {text} begins again after another: sort the rows by"
                " episode (and by time within each), or give different episodes different names"
            )
        spans[text] = Span(path, text, "/", start + begin, start + end)
    return list(spans.values())


def _by_flags(columns: Columns, names: tuple[str, ...], start: int, stop: int, path: Path) -> list[Span]:
    is_end = np.zeros(stop - start, bool)
    for name in names:
        flags = np.nan_to_num(columns.read(name, start, stop))
        if flags.size != stop - start:
            raise UserError(f"{path}: {name!r} must be one flag a row, not {list(flags.shape[1:])}")
        is_end |= flags.reshape(-1).astype(bool)
    cuts = [start, *(start + np.flatnonzero(is_end) + 1).tolist()]
    if cuts[-1] != stop:
        cuts.append(stop)  # the recording stopped in mid-episode
    return _between(cuts, path)


def _by_stops(columns: Columns, name: str, start: int, stop: int, path: Path) -> list[Span]:
    columns.rows(name)
    stops = columns.read(name, 0, None).reshape(-1).astype(np.int64)
    cuts = np.concatenate([[0], stops])
    if not len(stops) or (np.diff(cuts) < 1).any() or cuts[-1] > stop:
        raise UserError(f"{path}: {name!r} must hold rising numbers of rows, up to {stop}, not {stops[:8].tolist()}")
    inside = [span for span in _between(cuts.tolist(), path) if start <= span.start and (span.stop or 0) <= stop]
    if not inside:
        raise UserError(f"{path}: no whole episode lies in rows {start} to {stop}")
    return inside


def _by_lengths(lengths: int | tuple[int, ...], start: int, stop: int, path: Path) -> list[Span]:
    """Pieces of so many rows, the last of what is left; or of these numbers of rows, which must be all there are."""
    if isinstance(lengths, int):
        return _between([*range(start, stop, lengths), stop], path)
    if sum(lengths) != stop - start:
        raise UserError(
            f"{path}: the lengths in the schema add up to {sum(lengths):,}, its rows {start} to {stop} to"
            f" {stop - start:,}: they must agree"
        )
    return _between([start, *(start + np.cumsum(lengths)).tolist()], path)


def _by_stored_lengths(
    columns: Columns, length: str, offset: str | None, start: int, stop: int, path: Path
) -> list[Span]:
    columns.rows(length)
    lengths = columns.read(length, 0, None).reshape(-1).astype(np.int64)
    offsets = start + np.cumsum(lengths) - lengths
    if offset:
        columns.rows(offset)
        offsets = columns.read(offset, 0, None).reshape(-1).astype(np.int64)
    if len(lengths) != len(offsets) or not len(lengths):
        raise UserError(f"{path}: {len(lengths)} {length!r}, but {len(offsets)} {offset!r}")
    order = np.argsort(offsets, kind="stable")
    edges = np.append(offsets[order], stop)[1:]
    wrong = np.flatnonzero((lengths[order] < 1) | (offsets[order] < 0) | (offsets[order] + lengths[order] > edges))
    if len(wrong):
        number = int(order[wrong[0]])
        raise UserError(
            f"{path.name}, episode {number}: rows {offsets[number]} to {offsets[number] + lengths[number]} are empty,"
            f" overlap with the next episode's, or go beyond the {stop} rows of the file"
        )
    return [Span(path, str(i), "/", int(offsets[i]), int(offsets[i] + lengths[i])) for i in range(len(lengths))]
