"""Values that a model cannot tell apart: it computes in float32, and takes what hardly varies for a constant."""

import numpy as np

from worldmodel.data.spaces import Json, image_shape

ROWS = 1000  # of an episode that are looked at, at most
LOST = 1e-3  # of the deviation: what float32 may lose of it
SMALL = 1e-6  # of 1 + |mean|: an entry that deviates less is not normalised (nets.Normalizer)
SHOWN = 8  # entries named in a message
JITTER = 16  # roundings of a constant: what moves less is one


class Resolution:
    """How much of the deviation of each entry of a stream float32 keeps."""

    def __init__(self, leaf: Json) -> None:
        self.watched = leaf["type"] == "Box" and image_shape(leaf) is None
        self.waiting: list[np.ndarray] = []  # to be taken together, since each time takes long
        self.rows = 0  # of these
        self.first: np.ndarray | None = None
        self.count, self.jitter = 0, 0.0
        self.sums = np.zeros((3, 1))  # of the difference to the first, its square, and that of what float32 loses

    def add(self, values: np.ndarray) -> None:
        """Take values (N, ...) of an episode; rows that are not finite are left out."""
        if not self.watched or not values.size:
            return
        self.waiting.append(values.reshape(len(values), -1)[:: max(1, len(values) // ROWS)].copy())
        self.rows += len(self.waiting[-1])
        if self.rows >= ROWS:
            self._take()

    def _take(self) -> None:
        values, self.waiting, self.rows = np.concatenate(self.waiting), [], 0
        whole = values.dtype.kind in "biu"  # float64 does not hold all of them
        exact = values.astype(np.longdouble if whole else np.float64)
        with np.errstate(over="ignore"):  # what becomes infinite is reported as such
            seen = values.astype(np.float32).astype(exact.dtype)
        finite = np.isfinite(seen).all(axis=1)
        if not finite.any():
            return
        first = self.first = exact[finite][0] if self.first is None else self.first
        moved, lost = exact[finite] - first, seen[finite] - exact[finite]
        self.count += len(moved)
        self.sums = self.sums + np.stack([part.sum(axis=0) for part in (moved, moved**2, lost**2)])
        self.jitter = 0.0 if whole else JITTER * float(np.finfo(values.dtype).eps)

    def unresolved(self) -> dict[int, str]:
        """Entry -> how it varies, of the entries of which a model would see too little."""
        if self.waiting:
            self._take()
        if self.first is None:
            return {}
        mean, square, lost = self.sums / self.count
        centre, std = self.first + mean, np.sqrt(np.maximum(square - mean**2, 0))
        size = np.abs(centre)
        few = (std > self.jitter * size) & ((np.sqrt(lost) > LOST * std) | (std <= SMALL * (1 + size)))
        return {int(i): f"{i} deviates by {std[i]:.2g} around {centre[i]:.2g}" for i in np.flatnonzero(few)}


def in_words(title: str, unresolved: dict[int, str]) -> str:
    """What is unresolved of a stream, in a line."""
    shown = ", ".join(list(unresolved.values())[:SHOWN]) + ", ..." * (len(unresolved) > SHOWN)
    return f"{title}: too fine for a model, which computes in float32 and takes it for constant: entry {shown}"


REMEDY = "give it in a unit in which it deviates by about 1, or less a constant; errors of it are not measured"
