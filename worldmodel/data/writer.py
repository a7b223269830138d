"""Writing episodes into a dataset folder so that none is lost, and merging its files.

    DIR/manifest.json      which files are data, and what the data is
    DIR/episodes-00000.h5  shards
    DIR/part-00000.h5      the last second of a recording, until `finish` or `compact` merges the parts into shards

Only what the manifest lists is data. A file is on the disk before the manifest lists it, the manifest is replaced as a
whole, and a file is removed after the manifest has dropped it. So the process may die at any point.
"""

import logging
import re
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import SoftFileLock, Timeout

from worldmodel.data.episode import Episode
from worldmodel.data.manifest import FILE_NAME, MANIFEST, checked_path, read_manifest, write_manifest
from worldmodel.data.shards import Piece, grouped, num_bytes, pieces, read_shard, shard_sizes, write_shard
from worldmodel.data.spaces import Json, check_spaces, in_words, outside
from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable

log = logging.getLogger(__name__)

SHARD_BYTES = 240 << 20  # of values before compression, so that no file exceeds 256 MB
PART_BYTES = 32 << 20  # most bytes that wait in memory
ACTIONS = "actions"
BEFORE = "before"  # key of an unfinished manifest: what the folder held as the session that adds to it began
BEGUN = re.compile(rf"\.(manifest\.json|{FILE_NAME.pattern})\..*\.partial")  # see durable.whole_file


class EpisodeWriter:
    """Adds episodes to a dataset folder; one process at a time.

    An episode is *acknowledged* once it is on the disk and in the manifest: then readers see it, and it survives
    whatever happens to the process.

    Args:
        folder: created if missing.
        manifest: what the data is; `observation_space` (key -> leaf) and `action_space` as data.spaces describes them.
        append: add to the episodes that the folder already holds.
        again: without those that the last session added, if it has not finished.
        flush_seconds: time after which an added episode is acknowledged.
        shard_bytes: size of a shard, in bytes of values before compression.

    Raises:
        UserError: if the folder holds a dataset (without append) or one with other spaces, cannot be created, or
            another process is writing to it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        append: bool = False,
        again: bool = False,
        flush_seconds: float = 1.0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if missing := {"observation_space", "action_space"} - manifest.keys():
            raise ValueError(f"the manifest needs {' and '.join(sorted(missing))} (see data.spaces)")
        self._created = not check_readable(folder).exists()
        check_spaces(manifest["observation_space"], manifest["action_space"], f"the dataset for {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the dataset's folder {folder} cannot be created: {error.strerror}") from error
        self.folder, self.flush_seconds, self.shard_bytes = folder, flush_seconds, shard_bytes
        self.episodes = self.steps = 0  # acknowledged by this writer
        self._lock = _lock(folder)
        try:
            self.manifest = self._first_manifest(manifest, append, again)
            if again and self.manifest["files"]:
                kept = self.manifest["files"][: self.manifest.get(BEFORE, {}).get("files", 0)]
                self.manifest = write_manifest(folder, self.manifest | {"files": kept})
            _remove_unlisted(folder, self.manifest)
        except BaseException:
            self._lock.release()
            raise
        self.waiting: list[Piece] = []
        self._waiting_bytes = 0
        self._last_flush = time.monotonic()

    def _first_manifest(self, manifest: dict[str, Any], append: bool, again: bool) -> dict[str, Any]:
        if not (self.folder / MANIFEST).exists():
            if shards := [path.name for path in self.folder.iterdir() if FILE_NAME.fullmatch(path.name)]:
                raise UserError(
                    f"{self.folder} holds {shards[0]} of a dataset that has lost its {MANIFEST}: restore that from a"
                    " copy, or choose another folder"
                )
            return write_manifest(self.folder, manifest | {"complete": False, "files": []})
        present = read_manifest(self.folder)
        if again:  # another process may have finished it since
            append = present.get("complete") is False
        if not append:
            state = "" if present.get("complete") else ", of a recording that was interrupted"
            raise UserError(
                f"{self.folder} already holds a dataset ({present['episodes']} episodes{state}):"
                " choose another folder, remove this one, or add to it with --append"
            )
        for space in ("observation_space", "action_space"):
            if present[space] != manifest[space]:
                raise UserError(
                    f"{self.folder} holds episodes of another {space.replace('_', ' ')} ({in_words(present[space])},"
                    f" not {in_words(manifest[space])}): choose another folder"
                )
        return present | {"complete": False}

    def add(self, episode: Episode) -> None:
        """Take an episode, which the next `flush` acknowledges; a UserError if it does not fit the spaces."""
        episode = self.stored(episode)
        self.waiting += pieces(episode, self.shard_bytes)
        self._waiting_bytes += num_bytes(episode)
        self.flush_if_due()

    def stored(self, episode: Episode) -> Episode:
        """An episode as the dataset keeps it; a UserError if it does not fit the spaces."""
        leaves = self.manifest["observation_space"]
        if episode.observations.keys() != leaves.keys():
            has, wanted = ", ".join(episode.observations), ", ".join(leaves)
            raise UserError(f"an episode has the observations {has}; it must have {wanted}")
        return replace(
            episode,
            observations={key: self._stored(key, values, leaves[key]) for key, values in episode.observations.items()},
            actions=self._stored(self._actions, episode.actions, self.manifest["action_space"]),
            rewards=np.asarray(episode.rewards, np.float64),
        )

    @property
    def _actions(self) -> str:
        """The name of the actions among the dtypes, which are those of the observations by their keys too."""
        name = ACTIONS
        while name in self.manifest["observation_space"]:
            name += "_"
        return name

    def _stored(self, name: str, values: np.ndarray, leaf: Json) -> np.ndarray:
        """The values with the dtype that the dataset keeps: the first episode's, or its space's if that is wider."""
        if wrong := outside(values, leaf):
            raise UserError(f"an episode's {name} {wrong}")
        kinds = self.manifest.setdefault("dtypes", {})
        first = np.result_type(values.dtype, leaf["dtype"]) if leaf["type"] == "Box" else values.dtype
        kind = np.dtype(kinds.setdefault(name, str(first)))
        if not np.can_cast(values.dtype, kind, "safe"):
            raise UserError(f"an episode's {name} are {values.dtype}, the dataset keeps {kind}: use one type")
        return values.astype(kind, copy=False)

    def flush_if_due(self) -> None:
        """Flush if episodes have waited long enough, or take much memory."""
        late = time.monotonic() - self._last_flush >= self.flush_seconds
        if self.waiting and (late or self._waiting_bytes >= PART_BYTES):
            self.flush()

    def flush(self) -> int:
        """Acknowledge waiting episodes; returns how many this writer has acknowledged so far."""
        self._last_flush = time.monotonic()
        if not self.waiting:
            return self.episodes
        stream, files = iter(self.waiting), list(self.manifest["files"])
        for lengths in grouped(((len(p.episode), num_bytes(p.episode)) for p in self.waiting), self.shard_bytes):
            files.append(write_shard(_next_path(self.folder, "part", files), lengths, (next(stream) for _ in lengths)))
        self.manifest = write_manifest(self.folder, self.manifest | {"files": files})
        self.episodes += sum(not piece.continues for piece in self.waiting)
        self.steps += sum(len(piece.episode) for piece in self.waiting)
        self.waiting, self._waiting_bytes = [], 0
        return self.episodes

    def finish(self) -> dict[str, Any]:
        """Acknowledge waiting episodes, merge the parts into shards and return the manifest, now marked complete."""
        self.flush()
        shards = [entry for entry in self.manifest["files"] if not entry["name"].startswith("part-")]
        parts = [entry for entry in self.manifest["files"] if entry["name"].startswith("part-")]
        complete = {key: value for key, value in self.manifest.items() if key != BEFORE} | {"complete": True}
        try:
            self.manifest = _replace(self.folder, complete, shards, parts, self.shard_bytes)
        except OSError as error:  # nothing is lost: there are only more files than necessary
            self.manifest = write_manifest(self.folder, complete)
            log.warning(
                "%s is complete, but its parts were not merged (%s); `data compact` does that",
                self.folder,
                error.strerror,
            )
        finally:
            self._lock.release()
        return self.manifest

    def close(self) -> None:
        """Acknowledge waiting episodes and release the folder, as interrupted; an empty dataset is removed."""
        try:
            self.flush()
            if not self.manifest["files"]:
                (self.folder / MANIFEST).unlink()
        finally:
            self._lock.release()
            if self._created and not any(self.folder.iterdir()):
                self.folder.rmdir()


def compact(folder: Path, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Rewrite a dataset's files as few shards with the same episodes in the same order. Returns the manifest.

    Raises:
        UserError: if a file is damaged (then nothing changes), or another process is writing to the folder.
    """
    read_manifest(folder)
    lock = _lock(folder)
    try:
        manifest = read_manifest(folder)
        manifest.pop(BEFORE, None)  # its files are merged with the others
        _remove_unlisted(folder, manifest)
        return _replace(folder, manifest, [], manifest["files"], shard_bytes)
    except OSError as error:
        raise UserError(f"{folder} cannot be compacted ({error.strerror}): nothing was changed") from error
    finally:
        lock.release()


def _replace(
    folder: Path, manifest: dict[str, Any], keep: list[dict[str, Any]], old: list[dict[str, Any]], limit: int
) -> dict[str, Any]:
    """Merge the `old` files into shards after the kept ones, and remove them. Returns the manifest."""
    files = list(keep)
    paths = [checked_path(folder, entry) for entry in old]  # checks all before HDF5 opens any
    stream = chain.from_iterable(map(read_shard, paths))
    sizes = chain.from_iterable(map(shard_sizes, paths))
    try:
        for lengths in grouped(sizes, limit):
            path = _next_path(folder, "episodes", files + old)
            files.append(write_shard(path, lengths, (next(stream) for _ in lengths)))
        written = write_manifest(folder, manifest | {"files": files})
    except BaseException:
        _remove_unlisted(folder, manifest)
        raise
    _remove_unlisted(folder, written)
    return written


def _next_path(folder: Path, kind: str, listed: list[dict[str, Any]]) -> Path:
    numbers = [int(Path(entry["name"]).stem.split("-")[1]) for entry in listed if entry["name"].startswith(f"{kind}-")]
    return folder / f"{kind}-{max(numbers, default=-1) + 1:05d}.h5"


def _remove_unlisted(folder: Path, manifest: dict[str, Any]) -> None:
    """Remove files that a process left when it died before listing or after dropping them."""
    listed = {entry["name"] for entry in manifest["files"]}
    for path in folder.iterdir():
        unlisted = FILE_NAME.fullmatch(path.name) and path.name not in listed
        if unlisted or BEGUN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _lock(folder: Path) -> SoftFileLock:
    """The right to write: a file with pid and host, which is taken over from a process that has died."""
    path = folder / ".writer.lock"
    lock = SoftFileLock(path, timeout=0.5, poll_interval=0.05, thread_local=False)
    try:
        lock.acquire()
        return lock
    except Timeout:
        holder = path.read_text().split() if path.exists() else []
        who = f"process {holder[0]} on {holder[1]}" if len(holder) > 1 else "another process"
        raise UserError(
            f"{who} is writing to {folder}: wait until it ends (if that machine is gone for good, remove {path})"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error
