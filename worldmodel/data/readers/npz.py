"""Folders of .npz files in the manner of Dreamer: rows of observations, actions, rewards and flags.

DreamerV3 (JAX) writes chunks `TIME-UUID-SUCCESSOR-LENGTH.npz` that continue each other: row t holds o_t, the reward and
flags that came with it, and the action chosen after it (embodied/core/replay.py, "next"). dreamerv3-torch and pydreamer
write an episode a file: row t holds o_t and the action that led to it ("previous"). The files do not tell which.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.readers.alignment import Rows, Side, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.readers.fingerprint import fingerprint
from worldmodel.data.readers.npz_file import Columns, Member, load, members_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

FIRST, TERMINAL = ("is_first", "reset"), ("is_terminal", "terminal")
NO_OBSERVATION = {"action", "reward", *FIRST, *TERMINAL, "is_last", "discount", "stepid", "consec", "logprob", "seed"}
NO_OBSERVATION |= {"action_prob", "action_next", "policy_value", "policy_entropy"}  # pydreamer's notes on the policy
NO_OBSERVATION_PREFIXES = ("log_", "log/", "logprob_", "enc/", "dyn/", "dec/", "metric_")
ALIGNMENTS = {
    "next": "action[t] is taken after row t and leads to row t+1, whose reward and flags are the transition's",
    "previous": "action[t], with reward[t], led to row t; those of an episode's first row are placeholders",
}


def read_npz(path: Path, alignment: Side | None, keys: Sequence[str] | None = None) -> Source:
    """The episodes in the .npz files of folder `path`.

    Args:
        path: folder; files in folders below it are read too.
        alignment: which transition a row's action belongs to, the one that leaves the row or the one that enters it.
        keys: the observations to read; by default every array that is no action, reward, flag or note on the policy.

    Raises:
        UserError: if there are no files, one is damaged or holds objects or far more than its size, a key is missing,
            or no alignment is given.
    """
    if alignment not in ALIGNMENTS:
        told = "; ".join(f"{name} ({words})" for name, words in ALIGNMENTS.items())
        raise UserError(f"{path}: .npz files do not tell how actions are aligned. Say --alignment {told}")
    files = sorted(path.rglob("*.npz"))
    if not files:
        raise UserError(f"{path}: there are no .npz files in this folder")
    state = fingerprint(files, path)
    chains = _chains(files)
    first = chains[0][0]
    members = members_of(first)
    chosen = _observation_keys(members, keys, first)
    sample = load(first, [*chosen, "action"])
    observation_space = {key: leaf_of(sample[key]) for key in chosen}
    action_space = action_leaf(sample["action"], _largest_action(files, sample["action"]))
    return Source(
        path=path,
        format="npz",
        observation_space=observation_space,
        action_space=action_space,
        alignment=ALIGNMENTS[alignment],
        fingerprint=state,
        episodes=partial(_episodes, chains, path, alignment, observation_space, action_space),
        provenance={"files": len(files), "left_out": sorted(members.keys() - {*chosen, "action", "reward"})},
    )


def _chains(files: list[Path]) -> list[list[Path]]:
    """Files in the order in which they continue each other; a file that is no chunk is a chain of its own."""
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
    found = list(keys or ()) or [
        name
        for name, (shape, dtype) in members.items()
        if name not in NO_OBSERVATION
        and not name.startswith(NO_OBSERVATION_PREFIXES)
        and dtype.kind in "biuf"
        and shape[:1] == rows
    ]
    if not found:
        raise UserError(f"{path}: there is no observation among {', '.join(members)}")
    return found


def _largest_action(files: list[Path], sample: np.ndarray) -> int:
    if sample.ndim != 1 or sample.dtype.kind not in "iu":
        return 0
    return max(int(load(file, ["action"])["action"].max(initial=0)) for file in files)


def _episodes(
    chains: list[list[Path]], root: Path, alignment: Side, observation_space: dict[str, Json], action_space: Json
) -> Iterator[tuple[str, Episode]]:
    for chain in chains:
        for where, columns in _pieces(chain, root, list(observation_space)):
            is_cut = _chunk(chain[0]) and not (_flag(columns, FIRST)[0] and _flag(columns, ("is_last",))[-1])
            if len(columns["action"]) == 1 and is_cut:
                continue  # the end of an episode whose other rows were deleted, or the start of one not yet gone on
            rows = Rows(
                {key: columns[key] for key in observation_space},
                columns["action"],
                columns.get("reward"),
                _flag(columns, TERMINAL),
                _flag(columns, ("is_last",)) & ~_flag(columns, TERMINAL),
            )
            episode = episode_of(rows, alignment, "previous", where)
            check_spaces(episode, observation_space, action_space, where)
            yield where, episode


def _pieces(chain: list[Path], root: Path, keys: list[str]) -> Iterator[tuple[str, Columns]]:
    """(name, rows) of each episode in files that continue each other, one at a time."""
    parts: list[Columns] = []
    where = ""
    for path in chain:
        names = {"reward", "discount", "is_last", *FIRST, *TERMINAL} & members_of(path).keys()
        columns = load(path, [*keys, "action", *sorted(names)])
        if _chunk(path) and not names & {*FIRST}:
            raise UserError(f"{path}: without the array 'is_first' it cannot be told where its episodes begin")
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
        if differ := part.keys() ^ parts[0].keys():
            raise UserError(f"{where}: only some of its chunks have the array {min(differ)!r}")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _flag(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """The first of these columns as truth values (N,); all False where there is none."""
    for name in names:
        if name in columns:
            return columns[name].reshape(len(columns[name]), -1)[:, 0].astype(bool)
    if names == TERMINAL and "discount" in columns:
        return columns["discount"].reshape(len(columns["discount"]), -1)[:, 0] == 0
    return np.zeros(len(columns["action"]), bool)
