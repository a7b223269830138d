"""What a dataset holds of a source that has grown since it was converted. An episode's identity is its content."""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.writer import EpisodeWriter
from worldmodel.errors import UserError

DIGITS = 16  # of what is recorded, by which an episode that has changed is named
Recorded = tuple[int, str, str]  # T, the identity, and that of the values alone


def identity(episode: Episode) -> str:
    """SHA-256 (hexadecimal) of all values of an episode, and of how it ended."""
    return _values(episode, len(episode), (episode.terminated, episode.truncated, episode.rate))


class Growth:
    """The episodes of a source that a dataset does not hold yet, each cast as the dataset keeps it.

    Args:
        writer: of the dataset.
        source: what is converted into it.
        past: the manifest's entries of earlier conversions, each with the `record` of its source as `episodes`.

    Raises:
        UserError: if an episode that was converted has changed, before anything is written.
    """

    def __init__(self, writer: EpisodeWriter, source: Source, past: list[dict[str, Any]]) -> None:
        self.writer, self.source = writer, source
        self.record: dict[str, Recorded] = {}  # the source's episodes by their names
        self._held = Counter(identity(episode) for _, episode in open_dataset(writer.folder).episodes())
        same = [one for one in past if (one["name"], one["format"]) == (source.path.name, source.format)]
        if records := [one["episodes"] for one in same if one.get("episodes")]:
            self._check(records)

    def episodes(self) -> Iterator[Episode]:
        """Those that are new, in the order of the source."""
        for name, episode in self._stored():
            whole = identity(episode)
            self.record[name] = len(episode), whole[:DIGITS], _values(episode, len(episode))[:DIGITS]
            if self._held[whole] > 0:
                self._held[whole] -= 1
            else:
                yield episode

    def _stored(self) -> Iterator[tuple[str, Episode]]:
        for name, episode in self.source.episodes():
            try:
                stored = self.writer.stored(episode)
            except UserError as error:
                raise UserError(f"{self.source.path}: {name}: {error}") from None
            yield name.replace(str(self.source.path), self.source.path.name), stored  # no path: data may be shared

    def _check(self, records: list[dict[str, Recorded]]) -> None:
        """Sources of one name may be different data: one that has nothing of a record is not what was converted."""
        now, grown = dict[str, str](), set[tuple[str, str]]()
        for name, episode in self._stored():
            now[name] = identity(episode)[:DIGITS]
            for steps, whole, values in (record[name] for record in records if name in record):
                if steps < len(episode) and values == _values(episode, steps)[:DIGITS]:
                    grown.add((name, whole))
        there = set(now.values())
        for record in records:
            shared = any(whole in there for _, whole, _ in record.values())
            lost = [(name, whole) for name, (_, whole, _) in record.items() if name in now and whole not in there]
            if changed := [name for name, whole in lost if shared or (name, whole) in grown]:
                more = f" and {len(changed) - 1} more" * (len(changed) > 1)
                raise UserError(
                    f"{self.source.path}: {changed[0]}{more} changed since it was converted into {self.writer.folder},"
                    " which would hold both forms of it: convert the source into a new folder"
                )


def _values(episode: Episode, steps: int, ends: Iterable[Any] = ()) -> str:
    """SHA-256 of an episode's first steps."""
    digest = sha256(repr([steps, *map(float, ends)]).encode())
    observed = [(key, values[: steps + 1]) for key, values in sorted(episode.observations.items())]
    for name, values in (*observed, ("actions", episode.actions[:steps]), ("rewards", episode.rewards[:steps])):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
