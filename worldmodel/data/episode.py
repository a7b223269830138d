"""An episode in the canonical form, and the sources that episodes come from."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.data.spaces import Json
from worldmodel.errors import UserError

ALIGNMENT = "actions[t] is taken after observations[t] and leads, with rewards[t], to observations[t+1]"


@dataclass(frozen=True)
class Episode:
    """T + 1 observations and the T transitions between them.

    `actions[t]` is taken after `observations[t]` and leads, with `rewards[t]`, to `observations[t + 1]`. The last
    observation is the true final one, not that of a reset. `terminated`: the last transition led to a terminal
    state; `truncated`: the episode was cut by a time limit or by the end of the recording.

    Raises:
        ValueError: if there is no transition, or the lengths are not T + 1, T, T.
    """

    observations: dict[str, np.ndarray]  # key -> (T + 1, ...)
    actions: np.ndarray  # (T, ...)
    rewards: np.ndarray  # (T,)
    terminated: bool
    truncated: bool
    rate: float = float("nan")  # steps per second; NaN: unknown

    def __post_init__(self) -> None:
        lengths = {key: len(values) for key, values in self.observations.items()}
        steps = len(self.rewards)
        if steps < 1:
            raise ValueError("it has no transition")
        if set(lengths.values()) - {steps + 1} or len(self.actions) != steps:
            raise ValueError(
                f"observations {lengths}, {len(self.actions)} actions, {steps} rewards: they must be T+1, T and T"
            )

    def __len__(self) -> int:
        """The number of transitions, T."""
        return len(self.rewards)


@dataclass(frozen=True)
class Source:
    """A dataset of any format, as a stream of canonical episodes.

    Each call of `episodes()` reads from the start, one episode at a time, and yields each with a name that says where
    it lies (`data.h5, episode 3`). It raises a UserError naming file and episode where the data is damaged or
    contradicts itself.
    """

    path: Path
    format: str  # worldmodel, minari, lerobot, npz, d4rl, robomimic, stable-worldmodel, schema
    observation_space: dict[str, Json]  # key -> leaf, see data.spaces
    action_space: Json
    alignment: str  # of the file's rows, in words; what episodes() yields is always canonical
    fingerprint: str  # changes when the data changes
    episodes: Callable[[], Iterator[tuple[str, Episode]]]
    provenance: Json = field(default_factory=dict)  # env_id, versions, ... as far as the format records them


@dataclass(frozen=True)
class Reader:
    """A dataset format: what the constant `READER` of a module in data/readers/ declares."""

    looks_like: str  # what lies at such a path, for error messages: "Minari (data/main_data.hdf5)"
    recognises: Callable[[Path], bool]
    open: Callable[..., Source]  # open(path, **options)
    options: tuple[str, ...] = ()  # those of observations, alignment and schema that `open` takes


def fingerprint(files: Collection[Path], root: Path) -> str:
    """SHA-256 (hexadecimal) of the name below `root`, the size and the modification time (ns) of every file.

    Neither the order of the files nor the place of `root` matters.

    Raises:
        UserError: if a file is a link that leaves the folder.
    """
    for file in files:
        inside(root, file)
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def inside(root: Path, file: Path) -> Path:
    """The file with links resolved; a UserError if that leads out of the dataset's folder `root`."""
    resolved = file.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise UserError(
            f"{file} leads outside of the dataset's folder, which is not followed; if this is a cache of links, copy it"
            " with `cp -rL`"
        )
    return resolved
