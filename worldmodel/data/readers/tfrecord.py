"""TFRecord files of tf.train.Example messages, read without TensorFlow.

A record is its length, the CRC-32C of that, the message, and the CRC-32C of this. A message maps names to lists of
bytes, of floats, or of whole numbers. Source: tensorflow, core/lib/io/record_writer.h and core/example/feature.proto.
"""

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from worldmodel.data.readers.parquet import need
from worldmodel.errors import UserError

Values = list[bytes] | np.ndarray  # of one name: bytes, or float32 or int64 (N,)
MASK = 0xA282EAD8


def read_records(path: Path) -> Iterator[bytes]:
    """The messages of a file, one at a time; a UserError naming the record that is damaged."""
    checksum = need("google_crc32c", "rlds").value
    size = path.stat().st_size
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            where = f"{path.name}, record {number}"
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or _masked(checksum(head[:8])) != int.from_bytes(head[8:], "little"):
                raise UserError(f"{where}: its length does not fit its checksum: the file is damaged, or no TFRecord")
            if file.tell() + length + 4 > size:
                raise UserError(f"{where}: the file ends before it does: it is cut off")
            data = file.read(length)
            if _masked(checksum(data)) != int.from_bytes(file.read(4), "little"):
                raise UserError(f"{where}: it does not fit its checksum: it is damaged")
            yield data
            number += 1


def parse_example(message: bytes, wanted: Collection[str], where: str) -> dict[str, Values]:
    """The wanted lists of a message, by their names; a UserError if it is none."""
    found: dict[str, Values] = {}
    try:
        for features in _parts(memoryview(message), 1):
            for entry in _parts(features, 1):
                name = bytes(next(_parts(entry, 1))).decode()
                if name in wanted:
                    found[name] = _values(next(_parts(entry, 2), memoryview(b"")))
    except (IndexError, ValueError, StopIteration, struct.error) as error:
        raise UserError(f"{where}: it is no tf.train.Example ({type(error).__name__} {error})") from None
    return found


def _values(feature: memoryview) -> Values:
    for number, kind in ((1, bytes), (2, float), (3, int)):
        for listed in _parts(feature, number):
            if kind is bytes:
                return [bytes(part) for part in _parts(listed, 1)]
            if kind is float:
                return np.frombuffer(b"".join(_parts(listed, 1)), "<f4")
            return _whole_numbers(b"".join(_parts(listed, 1)))
    return np.zeros(0, np.float32)


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The bytes of every field of this number; a number that stands alone as it would stand in a packed list."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        start = at
        match tag & 7:
            case 0:
                _, end = _varint(message, at)
            case 1:
                end = at + 8
            case 2:
                length, start = _varint(message, at)
                end = start + length
            case 5:
                end = at + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        if end > len(message):
            raise ValueError("a field goes beyond its message")
        if tag >> 3 == wanted:
            yield message[start:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(a number, where the next field begins)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _whole_numbers(packed: bytes) -> np.ndarray:
    """Varints, all at once, as int64."""
    raw = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if len(raw) and (not len(ends) or ends[-1] != len(raw) - 1):
        raise ValueError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - starts + 1
    if lengths.max(initial=0) > 10:
        raise ValueError("a number of more than ten bytes")
    total = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        here = lengths > place
        total[here] |= (raw[starts[here] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return total.view(np.int64)


def _masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + MASK) & 0xFFFFFFFF
