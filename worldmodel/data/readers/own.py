"""A format of the user's own: a function from a path to its episodes, `file.py:name`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import parts
from worldmodel.data.episode import ALIGNMENT, Episode, Reader, Source, fingerprint
from worldmodel.data.readers.alignment import action_leaf, check_spaces, leaf_of
from worldmodel.errors import UserError, reason_of


def own_reader(name: str) -> Reader:
    """The Reader that a name means, or one around the function that it means.

    Raises:
        PartError: if it is neither.
    """
    part = parts.load(name, "reader")
    if isinstance(part, Reader):
        return part
    if not callable(part):
        raise parts.misfit(name, "reader", f"it is {type(part).__name__}")
    return Reader(name, lambda path: True, partial(_source, name))


def _source(name: str, path: Path) -> Source:
    """The dataset at the path, whose spaces are those of its first episode."""
    if not path.exists():
        raise UserError(f"no dataset at {path}: it does not exist")
    read = partial(_episodes, name, path)
    first = next(read(), None)
    if first is None:
        raise UserError(f"{path}: {name} gives no episode")
    observations = {key: leaf_of(values) for key, values in first[1].observations.items()}
    action = action_leaf(first[1].actions)
    if action["type"] == "Discrete":
        action = action_leaf(first[1].actions, max(int(episode.actions.max()) for _, episode in read()))

    def episodes() -> Iterator[tuple[str, Episode]]:
        for where, episode in read():
            check_spaces(episode, observations, action, where)
            yield where, episode

    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return Source(path, name, observations, action, ALIGNMENT, fingerprint(files, root), episodes)


def _episodes(name: str, path: Path) -> Iterator[tuple[str, Episode]]:
    """What the user's function yields: episodes, or pairs of a name and an episode."""
    given: Any = parts.called(name, "reader", path)
    number = 0
    try:
        for number, each in enumerate(given):
            where, episode = each if isinstance(each, tuple) else (f"{path.name}, episode {number}", each)
            if not isinstance(episode, Episode):
                raise parts.misfit(name, "reader", f"it yields {type(episode).__name__}")
            if not all(isinstance(values, np.ndarray) for values in (*episode.observations.values(), episode.actions)):
                raise parts.misfit(name, "reader", f"{where} holds something else than NumPy's arrays")
            yield where, episode
    except UserError:
        raise
    except Exception as error:  # of the user's code: of any type
        raise parts.PartError(f"{path}, episode {number}: the reader {name} raised {reason_of(error)}") from error
