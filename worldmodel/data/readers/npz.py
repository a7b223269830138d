"""Folders of .npz files in the manner of Dreamer: rows of observations, actions, rewards and flags.

DreamerV3 (JAX) writes chunks `TIME-UUID-SUCCESSOR-LENGTH.npz` that continue each other: row t holds o_t, the reward and
flags that came with it, and the action chosen after it (embodied/core/replay.py, "next"). dreamerv3-torch and pydreamer
write an episode per file: row t holds o_t and the action that led to it ("previous"). The files do not record which.

Files come from anywhere: no pickle is run, and no more is unpacked than such a file should hold.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from worldmodel.data.episode import Episode, Reader, Source, fingerprint
from worldmodel.data.readers.alignment import Rows, Side, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

Columns = dict[str, np.ndarray]  # name -> (N, ...)
Member = tuple[tuple[int, ...], np.dtype]  # shape, dtype
FLOOR, EXPANSION = 256 << 20, 200  # bytes that any file may unpack to; above that: this many times its size
FIRST, TERMINAL = ("is_first", "reset"), ("is_terminal", "terminal")
NO_OBSERVATION = {"action", "reward", *FIRST, *TERMINAL, "is_last", "discount", "stepid", "consec", "logprob", "seed"}
NO_OBSERVATION |= {"action_prob", "action_next", "policy_value", "policy_entropy"}  # pydreamer's
NO_OBSERVATION_PREFIXES = ("log_", "log/", "logprob_", "enc/", "dyn/", "dec/", "metric_")
ALIGNMENTS = {
    "next": "action[t] is taken after row t and leads to row t+1, whose reward and flags are the transition's",
    "previous": "action[t], with reward[t], led to row t; those of an episode's first row are placeholders",
}


def read_npz(path: Path, alignment: Side | None, observations: Sequence[str] | None = None) -> Source:
    """The episodes in the .npz files of a folder.

    Args:
        path: folder; files in folders below it are read too.
        alignment: which transition a row's action belongs to, the one that leaves the row or the one that enters it.
        observations: keys to read; None: every array that is no action, reward, flag or note on the policy.

    Raises:
        UserError: if there are no files, one is damaged or holds objects or far more than its size, a key is missing,
            or no alignment is given.
    """
    if alignment not in ALIGNMENTS:
        choices = " or ".join(f"{name} ({words})" for name, words in ALIGNMENTS.items())
        raise UserError(f"{path}: .npz files do not record how actions are aligned; choose --alignment {choices}")
    files = sorted(path.rglob("*.npz"))
    if not files:
        raise UserError(f"{path}: there are no .npz files in this folder")
    state = fingerprint(files, path)
    chains = _chains(files)
    first = chains[0][0]
    members = _members(first)
    chosen = _observation_keys(members, observations, first)
    sample = _load(first, [*chosen, "action"])
    observation_space = {key: leaf_of(sample[key]) for key in chosen}
    action_space = action_leaf(sample["action"], _largest_action(files, sample["action"]))
    stream = partial(_episodes, chains, path, alignment, observation_space, action_space)
    about = {"files": len(files), "left_out": sorted(members.keys() - {*chosen, "action", "reward"})}
    return Source(path, "npz", observation_space, action_space, ALIGNMENTS[alignment], state, stream, about)


READER = Reader(
    looks_like=".npz episodes",
    recognises=lambda path: path.is_dir() and any(path.glob("*.npz")),
    open=read_npz,
    options=("alignment", "observations"),
)


def _chains(files: list[Path]) -> list[list[Path]]:
    """Files in the order in which they continue each other; a file that is no chunk is a chain by itself."""
    chunks: dict[str, tuple[Path, str]] = {}
    for file in files:
        if identity := _chunk(file):
            chunks[identity[0]] = file, identity[1]
    chains = [[file] for file in files if not _chunk(file)]
    placed: set[str] = set()
    heads = chunks.keys() - {successor for _, successor in chunks.values()}
    for head in sorted(heads, key=lambda name: chunks[name][0].name):
        chain, name = [], head
        while name in chunks:
            file, successor = chunks[name]
            if name in placed:
                raise UserError(f"{file}: two chunks name it as the one that follows them")
            placed.add(name)
            chain.append(file)
            name = successor
        chains.append(chain)
    if circle := chunks.keys() - placed:
        raise UserError(f"{chunks[min(circle)][0]}: the chunks that follow it lead back to it; there is no first one")
    return chains


def _chunk(file: Path) -> tuple[str, str] | None:
    """(its name, its successor's) of a chunk of DreamerV3; None for any other file."""
    match file.stem.split("-"):
        case [_, name, successor, length] if length.isdecimal() and 8 <= len(name) == len(successor):
            return name, successor
    return None


def _observation_keys(members: dict[str, Member], keys: Sequence[str] | None, path: Path) -> list[str]:
    if "action" not in members:
        raise UserError(f"{path}: there is no array 'action'; {nearest('action', members)}")
    for key in keys or ():
        if key not in members:
            raise UserError(f"{path}: there is no observation {key!r}; {nearest(key, members)}")
    rows = members["action"][0][:1]
    chosen = list(keys or ()) or [
        name
        for name, (shape, dtype) in members.items()
        if name not in NO_OBSERVATION
        and not name.startswith(NO_OBSERVATION_PREFIXES)
        and dtype.kind in "biuf"
        and shape[:1] == rows
    ]
    if not chosen:
        raise UserError(f"{path}: there is no observation among {', '.join(members)}")
    return chosen


def _largest_action(files: list[Path], sample: np.ndarray) -> int:
    if sample.ndim != 1 or sample.dtype.kind not in "iu":
        return 0
    return max(int(_load(file, ["action"])["action"].max(initial=0)) for file in files)


def _episodes(
    chains: list[list[Path]], root: Path, alignment: Side, observation_space: dict[str, Json], action_space: Json
) -> Iterator[tuple[str, Episode]]:
    for chain in chains:
        for where, columns in _pieces(chain, root, list(observation_space)):
            is_cut = _chunk(chain[0]) and not (_flag(columns, FIRST)[0] and _flag(columns, ("is_last",))[-1])
            if len(columns["action"]) == 1 and is_cut:
                continue  # the end of an episode whose other rows were deleted, or the start of an unfinished one
            observed, terminal = {key: columns[key] for key in observation_space}, _flag(columns, TERMINAL)
            truncated = _flag(columns, ("is_last",)) & ~terminal
            rows = Rows(observed, columns["action"], columns.get("reward"), terminal, truncated)
            episode = episode_of(rows, alignment, "previous", where)
            check_spaces(episode, observation_space, action_space, where)
            yield where, episode


def _pieces(chain: list[Path], root: Path, keys: list[str]) -> Iterator[tuple[str, Columns]]:
    """(name, rows) of each episode in files that continue each other, one at a time."""
    parts: list[Columns] = []
    where = ""
    for path in chain:
        names = {"reward", "discount", "is_last", *FIRST, *TERMINAL} & _members(path).keys()
        columns = _load(path, [*keys, "action", *sorted(names)])
        if _chunk(path) and not names & {*FIRST}:
            raise UserError(f"{path}: without the array 'is_first' nothing marks where its episodes begin")
        starts = np.flatnonzero(_flag(columns, FIRST))
        length = len(columns["action"])
        for number, (begin, end) in enumerate(pairwise([0, *starts[starts > 0].tolist(), length])):
            if parts and begin in starts:
                yield where, _joined(parts, where)
                parts = []
            if not parts:
                where = f"{path.relative_to(root)}, episode {number}"
            if end > begin:
                parts.append({name: values[begin:end] for name, values in columns.items()})
    if parts:
        yield where, _joined(parts, where)


def _joined(parts: list[Columns], where: str) -> Columns:
    for part in parts[1:]:
        if different := part.keys() ^ parts[0].keys():
            raise UserError(f"{where}: only some of its chunks have the array {min(different)!r}")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _flag(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """The first of these columns as truth values (N,); all False where there is none."""
    for name in names:
        if name in columns:
            return columns[name].reshape(len(columns[name]), -1)[:, 0].astype(bool)
    if names == TERMINAL and "discount" in columns:
        return columns["discount"].reshape(len(columns["discount"]), -1)[:, 0] == 0
    return np.zeros(len(columns["action"]), bool)


def _members(path: Path) -> dict[str, Member]:
    """Name -> (shape, dtype) of every array in the file, from the headers alone; a UserError if they cannot be true."""
    with _open(path) as archive:
        total, limit = sum(info.file_size for info in archive.infolist()), max(FLOOR, EXPANSION * path.stat().st_size)
        if total > limit:
            raise UserError(f"{path} would unpack to {total:,} bytes, far more than a file of its size should hold")
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                shape, dtype, header = _header(file, f"{path}: {name!r}")
            if math.prod(shape) * dtype.itemsize + header != info.file_size:
                raise UserError(f"{path}: {name!r} declares {list(shape)} of {dtype}, which is not what it holds")
            members[name] = shape, dtype
    return members


def _header(file: Any, where: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, length of the header) of an array in the .npy format."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise UserError(f"{where}: version {version} of the .npy format is not read")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects (a pickle), which could run code; only numbers are read")
    return shape, dtype, file.tell()


def _load(path: Path, names: Sequence[str]) -> Columns:
    """The named arrays, which must have as many rows as each other."""
    members = _members(path)
    columns = {}
    with _open(path) as archive:
        for name in names:
            if name not in members:
                raise UserError(f"{path}: there is no array {name!r}; {nearest(name, members)}")
            if members[name][1].kind not in "biuf" or not members[name][0]:
                raise UserError(f"{path}: {name!r} is {members[name][1]} {list(members[name][0])}, no rows of numbers")
            with archive.open(f"{name}.npy") as file:
                columns[name] = npy.read_array(file, allow_pickle=False)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: arrays of different lengths: {lengths}")
    return columns


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as .npz: it is damaged, or of another format ({reason})") from error
