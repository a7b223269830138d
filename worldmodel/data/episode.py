"""An episode in the canonical form, and the sources that episodes come from."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.data.spaces import Json
from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable

ALIGNMENT = "actions[t] is taken after observations[t] and leads, with rewards[t], to observations[t+1]"
WHOLE = 256 << 20  # bytes of a file that is read as a whole to identify it; of a larger one, SAMPLES of SAMPLE bytes
SAMPLES, SAMPLE = 256, 1 << 20


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
    fingerprint: str  # of the content: changes when the data changes, and only then
    episodes: Callable[[], Iterator[tuple[str, Episode]]]
    provenance: Json = field(default_factory=dict)  # env_id, versions, ... as far as the format records them


@dataclass(frozen=True)
class Reader:
    """A dataset format: what the constant `READER` of a module in data/readers/ declares."""

    looks_like: str  # what lies at such a path, for error messages: "Minari (data/main_data.hdf5)"
    recognises: Callable[[Path], bool]
    open: Callable[..., Source]  # open(path, **options)
    options: tuple[str, ...] = ()  # those of alignment, schema, choice and view that `open` takes
    names: bool = False  # whether the choice may name the action and the reward


def fingerprint(files: Collection[Path], root: Path) -> str:
    """SHA-256 (hexadecimal) of the content of every file, in the order of their names below `root`.

    Copies are the same data, whatever their place and time. Of a file above WHOLE bytes, its size and evenly spaced
    samples are read.

    Raises:
        UserError: if a file is a link that leaves the folder, is no regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        inside(root, file)
        try:
            digest.update(_content(check_readable(file)))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if (size := file.seek(0, os.SEEK_END)) <= WHOLE:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
        digest.update(f"{size} ".encode())
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE) * sample // (SAMPLES - 1))  # the first and the last bytes among them
            digest.update(file.read(SAMPLE))
    return digest.digest()


def inside(root: Path, file: Path) -> Path:
    """The file with links resolved; a UserError if that leads out of the dataset's folder `root`."""
    resolved = file.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise UserError(
            f"{file} leads outside of the dataset's folder, which is not followed; if this is a cache of links, copy it"
            " with `cp -rL`"
        )
    return resolved
