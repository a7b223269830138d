"""What float32 does not resolve, in which a model computes.

Values that lie far from zero and vary little there (1e6 +- 1e-3) are taken as their differences from the first one,
the entry's origin, which is subtracted before they become float32. What is left hardly varies at all (1e-30), and is a
constant for a model.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from worldmodel.data.spaces import Json, exact, image_shape

ROWS = 1000  # of those that are given at once that are looked at, at most
LOST = 1e-3  # of the deviation: what float32 may lose of it
SMALL = 1e-6  # of 1 + |mean|: an entry that deviates less is not normalised (nets.Normalizer)
SHOWN = 8  # entries named in a message
JITTER = 16  # roundings of a constant: what moves less is one


class Unresolved(NamedTuple):
    """How entries vary, in words, of which float32 keeps too little."""

    far: dict[int, str]  # entry -> words: their differences from the origin are resolved
    small: dict[int, str]
    origin: list[int | float]  # of each entry, that of `far`, else 0; empty if none is far


class Resolution:
    """How much of the deviation of each entry of a stream float32 keeps."""

    def __init__(self, leaf: Json) -> None:
        self.watched = leaf["type"] == "Box" and image_shape(leaf) is None
        self.subtracted = np.array(leaf.get("origin", 0), np.longdouble)
        self.waiting: list[np.ndarray] = []  # to be taken together, since each time takes long
        self.rows = 0  # of these
        self.first: np.ndarray | None = None
        self.origin: list[int | float] = []  # the same numbers
        self.count, self.jitter = 0, 0.0
        self.sums = np.zeros((3, 1))  # of the difference to the first, its square, and that of what float32 loses

    def add(self, values: np.ndarray) -> None:
        """Take values (N, ...) of an episode; rows that are not finite are left out."""
        if not self.watched or not values.size:
            return
        rows = values.reshape(len(values), -1)
        self.waiting.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(int)])
        self.rows += len(self.waiting[-1])
        if self.rows >= ROWS:
            self._take()

    def _take(self) -> None:
        values, self.waiting, self.rows = np.concatenate(self.waiting), [], 0
        whole = values.dtype.kind in "biu"
        true = exact(values) - self.subtracted if self.subtracted.any() else exact(values)
        with np.errstate(over="ignore"):  # what becomes infinite is reported as such
            seen = true.astype(np.float32).astype(true.dtype)
        finite = np.isfinite(seen).all(axis=1)
        if not finite.any():
            return
        if (first := self.first) is None:
            first = self.first = true[finite][0]
            self.origin = [int(value) if whole else float(value) for value in values[finite][0]]
        moved, lost = true[finite] - first, seen[finite] - true[finite]
        self.count += len(moved)
        self.sums = self.sums + np.stack([part.sum(axis=0) for part in (moved, moved**2, lost**2)])
        self.jitter = 0.0 if whole else JITTER * float(np.finfo(values.dtype).eps)

    def unresolved(self) -> Unresolved:
        """The entries of which a model would see too little."""
        if self.waiting:
            self._take()
        if self.first is None:
            return Unresolved({}, {}, [])
        mean, square, lost = self.sums / self.count
        centre, std = self.first + mean, np.sqrt(np.maximum(square - mean**2, 0))
        size = np.abs(centre)
        few = (std > self.jitter * size) & ((np.sqrt(lost) > LOST * std) | (std <= SMALL * (1 + size)))
        words = {int(i): f"{i} deviates by {std[i]:.2g} around {centre[i]:.2g}" for i in np.flatnonzero(few)}
        resolved = std > SMALL * (1 + np.abs(mean))  # once the first is subtracted
        far = {i: how for i, how in words.items() if resolved[i]}
        origin = [value if i in far else 0 for i, value in enumerate(self.origin)] if far else []
        return Unresolved(far, {i: how for i, how in words.items() if i not in far}, origin)


def too_small(title: str, entries: Mapping[int, str]) -> str:
    """The entries of a stream that are a constant for a model, in a line."""
    return f"{title}: too fine for a model, which computes in float32 and takes it for constant: {_shown(entries)}"


def far_away(title: str, entries: Mapping[int, str]) -> str:
    """The entries of a stream that lie too far away, in a line."""
    return f"{title}: too far from zero for float32, in which a model computes: {_shown(entries)}"


def _shown(entries: Mapping[int, str]) -> str:
    return "entry " + ", ".join(list(entries.values())[:SHOWN]) + ", ..." * (len(entries) > SHOWN)


REMEDY = "give it in a unit in which it deviates by about 1; errors of it are not measured"
SHIFTED = "its first value is subtracted before it becomes float32"
