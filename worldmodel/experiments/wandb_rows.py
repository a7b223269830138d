"""The rows of a run in Weights & Biases that its earlier sessions logged, read from their folders.

A session (`offline-run-<time>-<id>` or `run-<time>-<id>`) writes its rows into `run-<id>.wandb`, in blocks of 32 kB: a
session that was killed lacks the last of them. The file is in LevelDB's log format, of protobuf records.
"""

import csv
import json
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"
HEAD, BLOCK = 7, 32_768  # bytes of the file's header, and of a record's; of a block
WHOLE, LAST = 1, 4  # kinds of records: all of one, its last part
MEDIA = "._type"  # ends a name among those that a picture is stored under

Row = frozenset[tuple[str, str]]


def row_of(metrics: Mapping[str, Any], step: float) -> Row:
    """What tells a row from others: its numbers, the names of its pictures, its step."""
    return frozenset(
        (name, _text(value)) for name, value in {**metrics, STEP: step}.items() if not name.startswith("_")
    )


def _text(value: Any) -> str:
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return ""


class Earlier:
    """What the earlier sessions of a run logged: each row is logged once, though a resumed run repeats its steps.

    Args:
        sessions: their folders, of one run.
        kept: the rows of metrics.csv that the run goes on from.
    """

    def __init__(self, sessions: list[Path], kept: list[dict[str, Any]]) -> None:
        self.rows: set[Row] = set()
        self.kept, self.known = kept, True  # whether it is known which rows have arrived, or will
        self.until = -1.0  # all rows of earlier steps have arrived
        for session in sessions:
            rows, ended = _rows(session)
            if ended or session.name.startswith("offline"):
                self.rows.update(rows)
            else:  # which of them a killed session has sent, the server knows alone
                self.known = False

    def arrived(self, summary: Mapping[str, Any]) -> None:
        """Learn from a summary that the server has of the run, if it has one, how far rows have arrived."""
        if not self.known and summary.get(STEP) is not None:
            self.known, self.until = True, float(summary[STEP])

    def holds(self, metrics: Mapping[str, Any], step: float) -> bool:
        """Whether this row was logged."""
        return step < self.until or row_of(metrics, step) in self.rows

    def missing(self) -> Iterator[tuple[dict[str, float], int]]:
        """The kept rows that no session has, with their steps; none if that is unknown."""
        for row in self.kept if self.known else ():
            metrics = {name: float(value) for name, value in row.items() if name != "step" and value not in ("", None)}
            if not self.holds(metrics, step := int(row["step"])):
                yield metrics, step


def kept_rows(path: Path, logged: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of metrics.csv at a checkpoint, which says what it held (callbacks/metrics.py)."""
    if logged is None or not path.is_file():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(islice(csv.DictReader(file), logged["rows"]))
    return [*rows, *([logged["pending"]] if logged["pending"] else [])]


def _rows(session: Path) -> tuple[list[Row], bool]:
    """The rows of a session, and whether it came to its end."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    rows, ended = list[Row](), False
    for path in session.glob("run-*.wandb"):
        for content in _records(path.read_bytes()):
            try:
                record: Any = wandb_internal_pb2.Record.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
                named = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
                items: dict[str, Any] = {name: json.loads(value) for name, value in named}
            except (DecodeError, ValueError):  # what was being written
                break
            ended |= record.HasField("exit")
            for name in [name.removesuffix(MEDIA) for name in items if name.endswith(MEDIA)]:  # a.count, a.format, ...
                items = {key: value for key, value in items.items() if not key.startswith(f"{name}.")} | {name: None}
            if STEP in items:
                rows.append(row_of(items, items[STEP]))
    return rows, ended


def _records(data: bytes) -> Iterator[bytes]:
    at, record = HEAD, b""
    while at + HEAD <= len(data):
        if (left := BLOCK - at % BLOCK) < HEAD:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (WHOLE, LAST) and at <= len(data):
            yield record
            record = b""
