"""Shards: closed HDF5 files of episodes, written once and never changed.

    /observations/<key>  (sum of T + 1, ...), see hdf5.place_of    /actions, /rewards  (sum of T, ...)
    /lengths, /terminated, /truncated, /rates   one per episode
    /checksums  CRC-32 of each episode's values    /continues  the episode continues in the next shard

Every dataset has fletcher32. Images lie in chunks of 16 frames, Zstd if hdf5plugin is installed, else LZF.
"""

import importlib.util
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import h5py
import numpy as np

from worldmodel.data import spaces
from worldmodel.data.episode import Episode
from worldmodel.data.hdf5 import dataset, observations_of, open_hdf5, place_of, read
from worldmodel.durable import whole_file
from worldmodel.errors import UserError

IMAGE_CHUNK = 16  # frames
AT_ONCE = 8 << 20  # bytes of short episodes written together, since every call of HDF5 takes time
T = TypeVar("T")
PRIME, BASE = 2**127 - 1, 0x9E3779B97F4A7C15F39CC0605CEDC835


class Piece(NamedTuple):
    """An episode, or a part of one too long for a shard; the next part starts with this one's last frame."""

    episode: Episode
    continues: bool = False


def num_bytes(episode: Episode) -> int:
    """The size of an episode's values in memory."""
    return sum(array.nbytes for array in (*episode.observations.values(), episode.actions, episode.rewards))


def pieces(episode: Episode, limit: int) -> Iterator[Piece]:
    """The episode in parts of about `limit` bytes at most."""
    steps = len(episode)
    size = max(1, steps * limit // max(1, num_bytes(episode)))
    for start in range(0, steps, size):
        end = min(start + size, steps)
        observations = {key: values[start : end + 1] for key, values in episode.observations.items()}
        ends = (episode.terminated, episode.truncated) if end == steps else (False, False)
        part = Episode(observations, episode.actions[start:end], episode.rewards[start:end], *ends, episode.rate)
        yield Piece(part, end < steps)


def join(parts: Sequence[Episode]) -> Episode:
    """The episode that was written in these parts."""
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    observations = {
        key: np.concatenate([part.observations[key][:-1] for part in parts[:-1]] + [last.observations[key]])
        for key in last.observations
    }
    actions, rewards = (np.concatenate([getattr(part, name) for part in parts]) for name in ("actions", "rewards"))
    return Episode(observations, actions, rewards, last.terminated, last.truncated, last.rate)


def checksum(episode: Episode) -> int:
    """CRC-32 of all values."""
    total = 0
    for values in (*(values for _, values in sorted(episode.observations.items())), episode.actions, episode.rewards):
        total = crc32(np.ascontiguousarray(values).data, total)
    return total


def write_shard(path: Path, lengths: Sequence[int], parts: Iterable[Piece]) -> dict[str, Any]:
    """Write a shard and return its entry for the manifest.

    The file is made in memory, since HDF5 crashes when the disk is full.

    Args:
        path: a new file; on return it is on the disk as a whole, or not at all.
        lengths: T of each piece.
        parts: one or more, all with the same keys, shapes and dtypes.
    """
    steps, frames = sum(lengths), sum(lengths) + len(lengths)
    checksums, ends, step, frame = [], [], 0, 0
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for group in grouped(((part, num_bytes(part.episode)) for part in parts), AT_ONCE):
            episodes = [piece.episode for piece in group]
            keys = episodes[0].observations
            observed = {f"observations/{place_of(key, keys)}": [e.observations[key] for e in episodes] for key in keys}
            taken = {"actions": [e.actions for e in episodes], "rewards": [e.rewards for e in episodes]}
            for name, columns in (observed | taken).items():
                start, rows = (frame, frames) if name in observed else (step, steps)
                values = columns[0] if len(columns) == 1 else np.concatenate(columns)
                if not ends:
                    image = name in observed and spaces.image_shape(spaces.box_of(values)) is not None
                    _create(file, name, values, rows, image)
                dataset(file, name, path)[start : start + len(values)] = values
            step, frame = step + sum(map(len, episodes)), frame + sum(map(len, episodes)) + len(episodes)
            ends += [
                (e.terminated, e.truncated, e.rate, piece.continues) for e, piece in zip(episodes, group, strict=True)
            ]
            checksums += map(checksum, episodes)
        columns = zip(("terminated", "truncated", "rates", "continues"), zip(*ends, strict=True), strict=True)
        per_episode = {"lengths": np.array(lengths, np.int64), "checksums": np.array(checksums, np.uint32)}
        for name, values in (per_episode | {name: np.array(values) for name, values in columns}).items():
            file.create_dataset(name, data=values, chunks=True, fletcher32=True)
        file.flush()
        image = file.id.get_file_image()
    with whole_file(path) as temporary:
        temporary.write_bytes(image)
    entry = {"name": path.name, "sha256": sha256(image).hexdigest(), "bytes": len(image)}
    counts = {"episodes": sum(not end[-1] for end in ends), "steps": steps}
    return entry | counts | {"pieces": len(lengths), "content": _chain(checksums)}


def _chain(checksums: Iterable[int], before: int = 0) -> int:
    """One number for checksums in this order: a polynomial modulo a prime, so that it can be continued."""
    for value in checksums:
        before = (before * BASE + value + 1) % PRIME
    return before


def chained(files: Iterable[dict[str, Any]]) -> str:
    """A hexadecimal fingerprint of the episodes in these files, however they are divided among them."""
    total = count = 0
    for entry in files:
        total = (total * pow(BASE, entry["pieces"], PRIME) + entry["content"]) % PRIME
        count += entry["pieces"]
    return sha256(f"{total} {count}".encode()).hexdigest()


def grouped(sized: Iterable[tuple[T, int]], limit: int) -> Iterator[list[T]]:
    """Items, from (item, bytes) pairs, in groups of at most `limit` bytes or of a single one."""
    group: list[T] = []
    total = 0
    for item, size in sized:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


class Shard:
    """An open shard, whose pieces are read by number; a UserError if its parts contradict each other."""

    def __init__(self, file: h5py.File, path: Path, keys: Collection[str] | None = None) -> None:
        names = ("lengths", "checksums", "continues", "terminated", "truncated", "rates")
        self.lengths, self.checksums, self.continues, *self.ends = (read(file, name, path) for name in names)
        self.observations = {k: v for k, v in observations_of(file).items() if keys is None or k in keys}
        self.actions, self.rewards = (dataset(file, name, path) for name in ("actions", "rewards"))
        count, steps = len(self.lengths), int(self.lengths.sum())
        frames = {key: len(values) for key, values in self.observations.items()}
        columns = {len(column) for column in (self.checksums, self.continues, *self.ends)}
        taken = {"actions": len(self.actions), "rewards": len(self.rewards)}
        if {*frames.values()} - {steps + count} or {*taken.values()} != {steps} or columns != {count}:
            sizes = f"observations {frames}, {taken['actions']} actions and {taken['rewards']} rewards"
            raise UserError(f"{path}: {sizes} do not fit {count} episodes with {steps} transitions in all")
        if count and self.lengths.min() < 1:
            i = int(self.lengths.argmin())
            raise UserError(f"{path}, episode {i}: it has one observation and no transition; leave it out")
        self.last = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def piece(self, i: int) -> Piece:
        """Piece number i, exactly as it was written."""
        end = int(self.last[i])
        start = end - int(self.lengths[i])
        observed = {key: values[start + i : end + i + 1] for key, values in self.observations.items()}
        terminated, truncated, rate = (column[i] for column in self.ends)
        ends = bool(terminated), bool(truncated), float(rate)
        return Piece(
            Episode(observed, self.actions[start:end], self.rewards[start:end], *ends), bool(self.continues[i])
        )


def read_shard(path: Path, keys: Collection[str] | None = None) -> Iterator[Piece]:
    """The pieces of a shard, with these observation keys (None: all); a UserError if it cannot be read."""
    with open_hdf5(path) as file:
        shard = Shard(file, path, keys)
        for i in range(len(shard)):
            yield shard.piece(i)


def shard_sizes(path: Path) -> list[tuple[int, int]]:
    """T and the bytes in memory of each piece of a shard."""
    with open_hdf5(path) as file:
        frame = sum(map(_row_bytes, observations_of(file).values()))
        step = sum(_row_bytes(dataset(file, name, path)) for name in ("actions", "rewards"))
        return [(int(t), int(t + 1) * frame + int(t) * step) for t in read(file, "lengths", path)]


def _row_bytes(values: h5py.Dataset) -> int:
    return math.prod(values.shape[1:]) * values.dtype.itemsize


def _create(file: h5py.File, name: str, values: np.ndarray, rows: int, image: bool) -> None:
    """An empty dataset of `rows` rows: 16 images a chunk, or about 64 kB of vectors."""
    size = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
    in_chunk = max(1, min(rows, IMAGE_CHUNK if image else 65_536 // size))
    compression: dict[str, Any] = {"compression": "lzf"}  # part of h5py, so that vectors can be read anywhere
    if image and has_zstd():
        import hdf5plugin

        compression = dict(hdf5plugin.Zstd(clevel=3))
    shape, chunks = (rows, *values.shape[1:]), (in_chunk, *values.shape[1:])
    file.create_dataset(name, shape, values.dtype, chunks=chunks, fletcher32=True, **compression)


@cache
def has_zstd() -> bool:
    """Whether hdf5plugin is installed."""
    return importlib.util.find_spec("hdf5plugin") is not None
