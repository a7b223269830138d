"""From a source to rows: in memory while they are few, in a cache on disk once they are many.

The cache holds the source's episodes unpacked as raw rows, so that a batch needs no decoding. It is keyed by the
source's fingerprint: when the data changes, a new cache replaces the old one. Its files have their SHA-256 beside them,
which is checked whenever it is opened: one that was damaged is made anew.
"""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock

from worldmodel.data.episode import Episode, Source
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.manifest import read_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.resolution import REMEDY, SHIFTED, Resolution, far_away, too_small
from worldmodel.data.rows import DiskRows, Rows, ShardFrames
from worldmodel.data.shards import Shard
from worldmodel.durable import digests, whole_file, write_digests
from worldmodel.durable import sha256 as sha256_of
from worldmodel.errors import UserError

log = logging.getLogger(__name__)

INDEX, FRAMES, IMAGES = "index.json", "frames.f32", "images.u8"
VERSION = 3  # of what is cached
NAME = re.compile(r"[0-9a-f]{16}")
NonFinite = Literal["error", "skip"]


@dataclass
class Loaded:
    """A dataset as rows, and its values that are not finite."""

    episodes: Episodes
    not_finite: dict[int, tuple[str, int]]  # episode -> field and step of its first NaN or infinity
    far: dict[str, tuple[str, list[int | float]]] = field(default_factory=dict)  # key -> how, and its origin
    too_fine: list[str] = field(default_factory=list)  # what float32 does not resolve, in words


def cache_folder(path: Path, cache_dir: Path | None) -> Path:
    """The cache of the dataset at `path`: beside it, or in `cache_dir`, which may serve datasets of the same name."""
    path = path.resolve()
    if cache_dir is None:
        return (path if path.is_dir() else path.parent) / ".worldmodel-cache" / path.name
    return cache_dir / f"{path.name}-{sha256(str(path).encode()).hexdigest()[:8]}"


def load(
    source: Source,
    memory_bytes: float,
    cache: Path,
    layout: Layout | None = None,
    origins: dict[str, list[int | float]] | None = None,
) -> Loaded:
    """Read all episodes of a source; twice, if there are values that lie too far from zero for float32.

    Args:
        source: a dataset of any format.
        memory_bytes: a dataset whose rows take more is kept in the cache, on disk.
        cache: a folder for this dataset alone; made when it is needed.
        layout: which observations, in which order; None: all of the source.
        origins: key -> what is subtracted from its entries (resolution.py); None: what the data need.

    Raises:
        UserError: if the source is damaged, empty or does not fit its spaces, or the cache cannot be written.
    """
    layout = layout or Layout(source.observation_space, source.action_space)
    loaded = _load(source, memory_bytes, cache, layout.shifted(origins or {}))
    for what, _ in loaded.far.values():
        log.warning("%s; %s", what, SHIFTED if origins is None else "the data of the model lie elsewhere")
    if loaded.far and origins is None:
        found = {key: origin for key, (_, origin) in loaded.far.items()}
        loaded = _load(source, memory_bytes, cache, layout.shifted(found))
    for what in loaded.too_fine:
        log.warning("%s; %s", what, REMEDY)
    return loaded


def _load(source: Source, memory_bytes: float, cache: Path, layout: Layout) -> Loaded:
    stamp = {"rows": VERSION, "layout": _digest([layout.observation_space, layout.action_space])}
    stamp |= {"source": source.fingerprint}
    if (cached := _open_cache(cache, stamp, layout)) is not None:
        return cached
    if os.path.exists(cache / _digest(stamp) / INDEX):  # of a name that is too long, Path.exists raises
        log.warning("the cache %s was changed or damaged: it is not used", cache / _digest(stamp))
    table = _Table(layout)
    stream = source.episodes()
    for name, episode in stream:
        table.add(name, episode)
        if table.num_bytes > memory_bytes:
            return _through_cache(table, stream, cache, stamp)
    if not table.names:
        raise UserError(f"{source.path} holds no episodes: record some with `worldmodel collect ENV_ID --out DIR`")
    frames = np.concatenate(table.frames)
    return table.loaded(frames, np.concatenate(table.images) if layout.pixels else None)


def load_compressed(folder: Path, layout: Layout, origins: dict[str, list[int | float]] | None = None) -> Loaded:
    """Like `load`, for a dataset folder; images stay in their shards and are decoded batch by batch."""
    vectors = Layout({key: layout.observation_space[key] for key in layout.vectors}, layout.action_space)
    loaded = load(open_dataset(folder, layout.vectors), math.inf, folder, vectors, origins)
    blocks: list[tuple[Path, int, int]] = []
    for entry in read_manifest(folder)["files"]:
        with open_hdf5(folder / entry["name"]) as file:
            shard = Shard(file, folder / entry["name"], ())
            frames = shard.lengths + 1
            # the last frame of a piece that continues is stored again as the first of the next piece
            counts, firsts = frames - shard.continues, np.cumsum(frames) - frames
            blocks += [(folder / entry["name"], int(f), int(n)) for f, n in zip(firsts, counts, strict=True)]
    images = ShardFrames(blocks, {key: layout.observation_space[key] for key in layout.images})
    layout = layout.shifted(loaded.episodes.layout.origins)
    return replace(loaded, episodes=replace(loaded.episodes, layout=layout, images=images))


def only_finite(loaded: Loaded, path: Path, non_finite: NonFinite) -> Episodes:
    """The episodes of the dataset at `path`; with `skip`, without those that hold a NaN or an infinity.

    Raises:
        UserError: naming the first such value, if `non_finite` is `error`, or if every episode has one.
    """
    episodes, bad = loaded.episodes, loaded.not_finite
    if not bad:
        return episodes
    if non_finite == "error":
        i, (name, step) = next(iter(bad.items()))
        raise UserError(
            f"{path}: {episodes.names[i]}, step {step}: the {name} is not finite"
            f" ({len(bad)} of {len(episodes)} episodes have such values); correct the data,"
            " or leave such episodes out with --data.non_finite skip"
        )
    if len(bad) == len(episodes):
        raise UserError(f"{path}: every episode holds a NaN or an infinity; correct the data")
    log.warning("%s: left out %d episodes that hold a NaN or an infinity", path, len(bad))
    return episodes.select(i for i in range(len(episodes)) if i not in bad)


def _through_cache(table: "_Table", stream: Iterator[Any], cache: Path, stamp: dict[str, Any]) -> Loaded:
    """Read the rest into files, once any other process that is doing so has finished."""
    folder = cache / _digest(stamp)
    with _writing(folder):
        lock = FileLock(_created(cache) / ".lock").acquire()
    with lock:
        if (cached := _open_cache(cache, stamp, table.layout)) is not None:
            return cached
        log.warning("the data does not fit into data.memory_gb: unpacking it once into %s", folder)
        try:
            _remove_stale(cache, stamp)
            _unpack(table, stream, folder, stamp)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        opened = _open_cache(cache, stamp, table.layout)
        assert opened is not None, "the cache was just written"
        return opened


def _unpack(table: "_Table", stream: Iterator[Any], folder: Path, stamp: dict[str, Any]) -> None:
    with _writing(folder):
        folder.mkdir()
        frames, images = (folder / FRAMES).open("wb"), (folder / IMAGES).open("wb")
    with frames, images:
        with _writing(folder):
            table.spill(frames, images)
        for name, episode in stream:
            table.add(name, episode)
            with _writing(folder):
                table.spill(frames, images)
        with _writing(folder):
            for file in (frames, images):
                file.flush()
                os.fsync(file.fileno())
            with whole_file(folder / INDEX) as temporary:
                temporary.write_text(json.dumps(table.index() | {"stamp": stamp}))
            for name in (INDEX, FRAMES, IMAGES):
                write_digests(folder / name, [sha256_of(folder / name)])


def _open_cache(cache: Path, stamp: dict[str, Any], layout: Layout) -> Loaded | None:
    """The rows cached for this state of the data; None if there are none, or they are damaged."""
    folder = cache / _digest(stamp)
    try:
        if any(sha256_of(folder / name) not in digests(folder / name) for name in (INDEX, FRAMES, IMAGES)):
            return None
        index = json.loads((folder / INDEX).read_text())
        bad = {int(i): (str(field), int(step)) for i, (field, step) in index["bad"].items()}
        table = _Table(layout, index["names"], index["num_frames"], bad)
        far = {key: (what, origin) for key, (what, origin) in index["far"].items()}
        too_fine = list(index["too_fine"])
        frames = DiskRows(folder / FRAMES, layout.row_dim, np.float32)
        images = DiskRows(folder / IMAGES, layout.pixels, np.uint8) if layout.pixels else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    total = sum(table.num_frames)
    if index["stamp"] != stamp or frames.shape[0] != total or (images is not None and images.shape[0] != total):
        return None
    return replace(table.loaded(frames, images), far=far, too_fine=too_fine)


def _remove_stale(cache: Path, stamp: dict[str, Any]) -> None:
    """Remove rows of the same entries of earlier data, and caches that were never finished."""
    for folder in cache.iterdir():
        if not NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue  # not ours
        try:
            layout = json.loads((folder / INDEX).read_text())["stamp"]["layout"]
        except (OSError, ValueError, LookupError, TypeError):
            layout = None
        if layout in (None, stamp["layout"]) or folder.name == _digest(stamp):
            shutil.rmtree(folder)


def _created(cache: Path) -> Path:
    """The cache's folder; a link is not followed, since stale folders in it are removed."""
    if cache.is_symlink():
        raise UserError(f"the cache {cache} is a link: remove it, or choose another place with --data.cache_dir DIR")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written ({error.strerror}): choose another place with --data.cache_dir DIR,"
            " or raise --data.memory_gb"
        ) from error


def _digest(what: Any) -> str:
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class _Table:
    """Rows in the making, episode by episode."""

    layout: Layout
    names: list[str] = field(default_factory=list)
    num_frames: list[int] = field(default_factory=list)
    not_finite: dict[int, tuple[str, int]] = field(default_factory=dict)
    frames: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    num_bytes: int = 0

    def __post_init__(self) -> None:
        self.resolution = {key: Resolution(leaf) for key, leaf in self.layout.observation_space.items()}
        self.of_actions = Resolution(self.layout.action_space)

    def add(self, name: str, episode: Episode) -> None:
        frames, images = self.layout.rows(episode, name)
        for key, resolution in self.resolution.items():
            resolution.add(episode.observations[key])
        self.of_actions.add(episode.actions)
        if not (finite := np.isfinite(frames)).all():
            step = int(np.argmin(finite.all(axis=1)))
            column = int(np.argmin(finite[step])) - self.layout.vector_dim
            what = "observation" if column < 0 else "reward" if column == 0 else "action"
            self.not_finite[len(self.names)] = (what, step)
        self.names.append(name)
        self.num_frames.append(len(frames))
        self.frames.append(frames)
        self.images.append(images)
        self.num_bytes += frames.nbytes + images.nbytes

    def spill(self, frames: BinaryIO, images: BinaryIO) -> None:
        """Move the rows so far to the files."""
        for array in self.frames:
            frames.write(np.ascontiguousarray(array).data)
        for array in self.images:
            images.write(np.ascontiguousarray(array).data)
        self.frames, self.images = [], []

    def index(self) -> dict[str, Any]:
        far, too_fine = self.unresolved()
        about = {"names": self.names, "num_frames": self.num_frames, "bad": self.not_finite}
        return about | {"far": far, "too_fine": too_fine}

    def unresolved(self) -> tuple[dict[str, tuple[str, list[int | float]]], list[str]]:
        """What lies too far away for float32, as in Loaded, and what is too fine."""
        far, too_fine = {}, []
        for key, (entries, small, origin) in ((key, one.unresolved()) for key, one in self.resolution.items()):
            if entries:
                far[key] = far_away(f"observation {key!r}", entries), origin
            if small:
                too_fine.append(too_small(f"observation {key!r}", small))
        entries, small, _ = self.of_actions.unresolved()
        return far, too_fine + [too_small("actions", entries | small)] * bool(entries or small)

    def loaded(self, frames: Rows, images: Rows | None) -> Loaded:
        counts = np.array(self.num_frames, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        episodes = Episodes(self.layout, frames, images, starts, counts, self.names)
        return Loaded(episodes, self.not_finite, *self.unresolved())
