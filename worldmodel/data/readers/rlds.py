"""RLDS episodes of TensorFlow Datasets, such as Open X-Embodiment's: features.json, and TFRecord files.

Each record is an episode, whose steps lie side by side in the lists `steps/observation/...`, `steps/action`, ... A step
holds an observation, the action taken after it and its reward; those of the last step are placeholders, or have no
outcome in the file. `is_terminal` is of the step's own observation. Source: google-research/rlds, README.
"""

import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode, Reader, Source, fingerprint, inside
from worldmodel.data.readers.alignment import Rows, action_leaf, episode_of, leaf_of, side_by_side
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.parquet import need
from worldmodel.data.readers.pictures import decoded
from worldmodel.data.readers.tfrecord import Values, parse_example, read_records
from worldmodel.data.readers.view import View
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

log = logging.getLogger(__name__)

STEPS, FEATURES = "steps/", "features.json"
SHARD = re.compile(r"(.+\.tfrecord)-(\d{5})-of-(\d{5})")
ALIGNMENT = (
    "step t holds observation[t], action[t] taken after it and reward[t] of the transition to step t + 1; the last step"
    " gives the final observation, and is_terminal that of its own observation"
)


@dataclass(frozen=True)
class _Leaf:
    """A feature of a step."""

    name: str  # in the records
    shape: tuple[int, ...] = ()
    dtype: str = ""
    is_image: bool = False
    unreadable: str = ""  # why


@dataclass(frozen=True)
class _Names:
    """Which features are what."""

    observations: dict[str, _Leaf]  # by key
    action: list[_Leaf]
    reward: _Leaf | None
    terminal: _Leaf | None
    view: View

    @property
    def wanted(self) -> set[str]:
        """The names of those that are read."""
        others = [leaf for leaf in (self.reward, self.terminal) if leaf]
        return {leaf.name for leaf in (*self.observations.values(), *self.action, *others)}


def read_rlds(path: Path, choice: Choice | None = None, view: View | None = None) -> Source:
    """The episodes in the folder of a TFDS dataset, all its splits.

    Keys are the names below `observation`; an action of several parts is one vector of quantities. Text is left out.

    Raises:
        UserError: if features.json is damaged or describes no steps, a file is missing or damaged, or google-crc32c is
            not installed.
    """
    need("google_crc32c", "rlds")
    files = _files(path)
    choice, leaves = choice or Choice(), _leaves(path)
    names, left_out = _pick(path, leaves, choice, view or View())
    actions = action_leaf(side_by_side([np.empty((0, *leaf.shape), leaf.dtype) for leaf in names.action]))
    if actions["type"] == "Discrete":
        actions["n"] = 1 + _largest(files, names.action[0])
    space = {}
    for key, leaf in names.observations.items():
        shape = names.view.shape(leaf.shape, f"the image {key!r}") if leaf.is_image else leaf.shape
        space[key] = leaf_of(np.empty((0, *shape), leaf.dtype))
    state = fingerprint([path / FEATURES, *files], path)
    rewards = names.reward.name if names.reward else "not recorded, read as 0"
    about = {"files": len(files), "left_out": left_out, "rewards": rewards}
    return Source(path, "rlds", space, actions, ALIGNMENT, state, partial(_episodes, files, names), about)


READER = Reader(
    looks_like=f"RLDS ({FEATURES}, *.tfrecord-*)",
    recognises=lambda path: (path / FEATURES).is_file() and any(path.glob("*.tfrecord-*")),
    open=read_rlds,
    options=("choice", "view"),
    names=True,
)


def _files(path: Path) -> list[Path]:
    """The records' files, none missing."""
    files = {file.name: inside(path, file) for file in sorted(path.glob("*.tfrecord-*"))}
    for name in files:
        if match := SHARD.fullmatch(name):
            every = [f"{match[1]}-{number:05d}-of-{match[3]}" for number in range(int(match[3]))]
            if missing := [one for one in every if one not in files]:
                raise UserError(f"{path}: the file {missing[0]} is missing: download it again")
    return list(files.values())


def _leaves(path: Path) -> dict[str, _Leaf]:
    """Name below `steps/` -> feature."""
    file = inside(path, path / FEATURES)
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        steps = whole["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return dict(_walk(steps, ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: it describes no steps of episodes ({type(error).__name__} {error})") from None


def _walk(feature: Json, name: str) -> Iterator[tuple[str, _Leaf]]:
    if "featuresDict" in feature:
        for part, inner in feature["featuresDict"]["features"].items():
            yield from _walk(inner, f"{name}/{part}" if name else part)
        return
    told, is_image = feature.get("tensor") or feature.get("image"), "image" in feature
    if told is None:
        yield name, _Leaf(STEPS + name, unreadable=f"{feature['pythonClassName'].split('.')[-1]}, no numbers")
        return
    shape = tuple(int(size) for size in (told.get("shape") or {}).get("dimensions", []))
    dtype, encoding = told.get("dtype") or "uint8", told.get("encoding", "none")
    why = ""
    if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", dtype):
        why = f"{dtype}, no numbers"
    elif min(shape, default=1) < 1 or math.prod(shape) > 2**31 or (is_image and len(shape) != 3):
        why = f"its shape varies, or is none: {list(shape)}"
    elif is_image and (dtype != "uint8" or shape[2] not in (1, 3, 4)):
        why = f"an image of {shape[2]} channels of {dtype}"
    elif not is_image and encoding not in ("none", "ENCODING_UNSPECIFIED"):
        why = f"its values are encoded ({encoding})"
    yield name, _Leaf(STEPS + name, shape, dtype, is_image, why)


def _pick(path: Path, leaves: dict[str, _Leaf], choice: Choice, view: View) -> tuple[_Names, dict[str, str]]:
    """The chosen features; and those that are not read, name -> why."""
    readable = {name: name for name, leaf in leaves.items() if not leaf.unreadable}
    observed, action = _family(readable, "observation"), _family(readable, "action")
    if not action and not choice.action:
        raise UserError(f"{path}: no action is among {', '.join(leaves)}: name it, --action NAME")
    every = {word: _every(leaves, word) for word in ("observation", "action")}
    keys = choice.keys(observed or readable, path, every["observation"])
    taken = Choice(choice.action).keys(action or readable, path, every["action"])
    places, parts = {key: every["observation"][key] for key in keys}, [every["action"][key] for key in taken]
    for name in (*places.values(), *parts):
        if leaves[name].unreadable:
            raise UserError(f"{path}: {name} cannot be read: {leaves[name].unreadable}")
    if choice.reward and choice.reward not in readable:
        raise UserError(f"{path}: there is no reward {choice.reward!r} in a step; {nearest(choice.reward, readable)}")
    left_out = {name: leaf.unreadable or "--observations reads it" for name, leaf in leaves.items()}
    for name in (*places.values(), *parts, choice.reward or "reward", "is_first", "is_last", "is_terminal", "discount"):
        left_out.pop(name, None)
    observations = {key: leaves[name] for key, name in places.items()}
    if view and not any(leaf.is_image for leaf in observations.values()):
        raise UserError(f"{path} holds no images among {', '.join(observations)} to crop or resize")
    outcome = leaves.get(choice.reward or "reward"), leaves.get("is_terminal")
    return _Names(observations, [leaves[name] for name in parts], *outcome, view), left_out


def _family(names: dict[str, str], word: str) -> dict[str, str]:
    """Key -> name of what a dict of this name holds, or of the one feature that it is."""
    if word in names:
        return {word: word}
    return {name.removeprefix(f"{word}/"): name for name in names if name.startswith(f"{word}/")}


def _every(leaves: dict[str, _Leaf], word: str) -> dict[str, str]:
    """Key -> name of all features of a step, those below this name by their short keys."""
    short = _family({name: name for name in leaves}, word)
    return short | {name: name for name in leaves if name not in short.values()}


def _episodes(files: list[Path], names: _Names) -> Iterator[tuple[str, Episode]]:
    for file in files:
        for number, record in enumerate(read_records(file)):
            where = f"{file.name}, episode {number}"
            lists = parse_example(record, names.wanted, where)
            observed = {key: _values(lists, leaf, names.view, where) for key, leaf in names.observations.items()}
            steps = len(next(iter(observed.values())))
            if steps < 2:
                log.warning("%s: it has a single step and no transition: left out", where)
                continue
            columns = {leaf.name: _values(lists, leaf, names.view, where) for leaf in names.action}
            told = [leaf for leaf in (names.reward, names.terminal) if leaf]
            signals = {leaf.name: _values(lists, leaf, names.view, where) for leaf in told}
            for name, values in (observed | columns | signals).items():
                if len(values) != steps:
                    raise UserError(f"{where}: {len(values)} rows of {name}, but {steps} steps")
            rewards = signals[names.reward.name][:-1] if names.reward else None
            terminal = signals[names.terminal.name] if names.terminal else None
            rows = Rows(observed, side_by_side([*columns.values()]), rewards, terminal)
            yield where, episode_of(rows, "next", "previous", where)


def _values(lists: dict[str, Values], leaf: _Leaf, view: View, where: str) -> np.ndarray:
    """A feature of all steps, (N, *shape), of images what the view shows."""
    stored = lists.get(leaf.name)
    if stored is None or isinstance(stored, list) != leaf.is_image:
        raise UserError(f"{where}: it has no {leaf.name} such as {FEATURES} says")
    if isinstance(stored, list):
        spots = (f"{where}, step {t}: the image {leaf.name!r}" for t in range(len(stored)))
        return np.stack([view.of(decoded(one, leaf.shape, spot)) for one, spot in zip(stored, spots, strict=True)])
    size = math.prod(leaf.shape)
    if len(stored) % size:
        raise UserError(f"{where}: {len(stored)} numbers of {leaf.name}, whose shape is {list(leaf.shape)}")
    return stored.astype(leaf.dtype).reshape(-1, *leaf.shape)


def _largest(files: list[Path], leaf: _Leaf) -> int:
    """The largest of all discrete actions."""
    records = (record for file in files for record in read_records(file))
    lists = (parse_example(record, {leaf.name}, files[0].name) for record in records)
    return max((int(_values(one, leaf, View(), files[0].name).max(initial=0)) for one in lists), default=0)
