"""Rows of Dreamer in .npz files: observations, actions, rewards and flags, an action before or after its observation.

DreamerV3 (JAX) writes chunks `TIME-UUID-SUCCESSOR-LENGTH.npz` that continue each other: row t holds o_t, the reward and
flags that came with it, and the action chosen after it (embodied/core/replay.py, "next"). dreamerv3-torch and pydreamer
write an episode per file: row t holds o_t and the action that led to it ("previous"). The files do not record which.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.readers.alignment import Rows, Side, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.fields import ACTION, REWARD, Stored
from worldmodel.data.readers.npz_file import Columns, load, members
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

FIRST, TERMINAL = ("is_first", "reset"), ("is_terminal", "terminal")
NO_OBSERVATION = {*ACTION, *REWARD, *FIRST, *TERMINAL, "is_last", "discount", "stepid", "consec", "logprob", "seed"}
NO_OBSERVATION |= {"action_prob", "action_next", "policy_value", "policy_entropy"}  # pydreamer's
NO_OBSERVATION_PREFIXES = ("log_", "log/", "logprob_", "enc/", "dyn/", "dec/", "metric_")
_ACTION, _REWARD = "<action>", "<reward>"  # among the columns of an episode
ALIGNMENTS = {
    "next": "action[t] is taken after row t and leads to row t+1, whose reward and flags are the transition's",
    "previous": "action[t], with reward[t], led to row t; those of an episode's first row are placeholders",
}


def read_dreamer(path: Path, files: list[Path], state: str, alignment: Side | None, choice: Choice) -> Source:
    """The episodes in .npz files of such rows.

    Args:
        path: file or folder.
        files: one or more.
        state: the fingerprint of their content.
        alignment: which transition a row's action belongs to, the one that leaves the row or the one that enters it.
        choice: what the user names; usually, every array that is no action, reward, flag or note is an observation.

    Raises:
        UserError: if a file is damaged or holds objects or far more than its size, a key is missing, or no alignment
            is given.
    """
    if alignment not in ALIGNMENTS:
        choices = " or ".join(f"{name} ({words})" for name, words in ALIGNMENTS.items())
        raise UserError(f"{path}: .npz files do not record how actions are aligned; choose --alignment {choices}")
    root = path if path.is_dir() else path.parent
    chains = _chains(files)
    first = chains[0][0]
    stored = members(first)
    taken = _taken(stored, choice, first)
    chosen = _observation_keys(stored, taken["action"], choice, first)
    sample = _load(first, chosen, {"action": taken["action"]})
    observation_space = {key: leaf_of(sample[key]) for key in chosen}
    action_space = action_leaf(sample[_ACTION], _largest_action(files, taken["action"], sample[_ACTION]))
    stream = partial(_episodes, chains, root, alignment, taken, observation_space, action_space)
    left_out = sorted(stored.keys() - {*chosen, *taken.values()})
    about = {"files": len(files), "left_out": {name: "no observation by its name" for name in left_out}}
    return Source(path, "npz", observation_space, action_space, ALIGNMENTS[alignment], state, stream, about)


def _taken(stored: dict[str, Stored], choice: Choice, path: Path) -> dict[str, str]:
    """The names of the arrays that hold the action and the reward (missing if there is none)."""
    if len(choice.action) > 1:
        raise UserError(f"{path}: name one array for the action, not {', '.join(choice.action)}")
    found = {}
    for what, usual, name in (("action", ACTION, "".join(choice.action)), ("reward", REWARD, choice.reward)):
        array = name or next((name for name in usual if name in stored), None)
        if array not in stored and (array or what == "action"):
            array = array or "action"
            raise UserError(f"{path}: there is no array {array!r}; {nearest(array, stored)}, or name it: --{what} NAME")
        found |= {what: array} if array else {}
    return found


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


def is_chunk(file: Path) -> bool:
    """Whether a file's name is that of a chunk of DreamerV3."""
    return _chunk(file) is not None


def _chunk(file: Path) -> tuple[str, str] | None:
    """(its name, its successor's) of a chunk of DreamerV3; None for any other file."""
    match file.stem.split("-"):
        case [_, name, successor, length] if length.isdecimal() and 8 <= len(name) == len(successor):
            return name, successor
    return None


def _observation_keys(stored: dict[str, Stored], action: str, choice: Choice, path: Path) -> list[str]:
    rows = stored[action].rows
    others = [name for name, array in stored.items() if array.rows == rows and name != action]
    notes = {choice.reward, *NO_OBSERVATION}
    usual = [name for name in others if name not in notes and not name.startswith(NO_OBSERVATION_PREFIXES)]
    if not (chosen := choice.keys({key: key for key in usual}, path, {key: key for key in others})):
        raise UserError(f"{path}: there is no observation among {', '.join(stored)}")
    return chosen


def _largest_action(files: list[Path], action: str, sample: np.ndarray) -> int:
    if sample.ndim != 1 or sample.dtype.kind not in "iu":
        return 0
    return max(int(load(file, [action])[action].max(initial=0)) for file in files)


def _load(path: Path, names: Sequence[str], taken: dict[str, str]) -> Columns:
    """The named arrays, and those of `taken` below the names that no array has."""
    columns = load(path, [*dict.fromkeys([*names, *taken.values()])])
    return {name: columns[name] for name in names} | {f"<{what}>": columns[name] for what, name in taken.items()}


def _episodes(
    chains: list[list[Path]],
    root: Path,
    alignment: Side,
    taken: dict[str, str],
    observation_space: dict[str, Json],
    action_space: Json,
) -> Iterator[tuple[str, Episode]]:
    for chain in chains:
        for where, columns in _pieces(chain, root, list(observation_space), taken):
            is_cut = _chunk(chain[0]) and not (_flag(columns, FIRST)[0] and _flag(columns, ("is_last",))[-1])
            if len(columns[_ACTION]) == 1 and is_cut:
                continue  # the end of an episode whose other rows were deleted, or the start of an unfinished one
            observed, terminal = {key: columns[key] for key in observation_space}, _flag(columns, TERMINAL)
            truncated = _flag(columns, ("is_last",)) & ~terminal
            rows = Rows(observed, columns[_ACTION], columns.get(_REWARD), terminal, truncated)
            episode = episode_of(rows, alignment, "previous", where)
            check_spaces(episode, observation_space, action_space, where)
            yield where, episode


def _pieces(chain: list[Path], root: Path, keys: list[str], taken: dict[str, str]) -> Iterator[tuple[str, Columns]]:
    """(name, rows) of each episode in files that continue each other, one at a time."""
    parts: list[Columns] = []
    where = ""
    for path in chain:
        stored = members(path)
        names = {"discount", "is_last", *FIRST, *TERMINAL} & stored.keys()
        here = {what: name for what, name in taken.items() if what == "action" or name in stored}
        columns = _load(path, [*keys, *sorted(names)], here)
        if _chunk(path) and not names & {*FIRST}:
            raise UserError(f"{path}: without the array 'is_first' nothing marks where its episodes begin")
        starts = np.flatnonzero(_flag(columns, FIRST))
        length = len(columns[_ACTION])
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
    return np.zeros(len(columns[_ACTION]), bool)
