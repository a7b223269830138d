""".npz files, one or a folder: rows with an end flag (OGBench, D4RL, replay buffers), Dreamer's, or by a schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldmodel.data.episode import Reader, Source, fingerprint
from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.arrays import read_arrays
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.dreamer import FIRST, is_chunk, read_dreamer
from worldmodel.data.readers.fields import DONE, EPISODE, STOPS, TERMINATED, TRUNCATED, Stored
from worldmodel.data.readers.npz_file import NpzArrays, members
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError

CUTS = {*TERMINATED, *TRUNCATED, *DONE, *EPISODE, STOPS, "ep_len"}


def read_npz(
    path: Path, alignment: Side | None = None, choice: Choice | None = None, schema: Json | None = None
) -> Source:
    """The episodes in a .npz file, or in those of a folder and the folders below it.

    Args:
        path: file or folder.
        alignment: of a row's action. None: where an end flag or a number cuts the rows, an action follows its row;
            of Dreamer's rows it is not known, and must be given.
        choice: what the user names.
        schema: see readers.schema; None: the layout is recognised.

    Raises:
        UserError: if there are no files, one is damaged or holds objects or far more than its size, or the layout or
            its alignment is not clear.
    """
    files = [path.resolve()] if path.is_file() else sorted(path.rglob("*.npz"))
    if not files:
        raise UserError(f"{path}: there are no .npz files in this folder")
    state = fingerprint(files, path if path.is_dir() else files[0].parent)
    if schema is None and _is_dreamers(files[0], members(files[0])):
        return read_dreamer(path, files, state, alignment, choice or Choice())
    how: dict[str, Any] = {"choice": choice or Choice(), "schema": schema, "alignment": alignment}
    return read_arrays(path, files, _opened, state, "npz", **how)


READER = Reader(
    looks_like=".npz episodes",
    recognises=lambda path: (path.is_dir() and any(path.glob("*.npz"))) or (path.suffix == ".npz" and path.is_file()),
    open=read_npz,
    options=("alignment", "choice", "schema"),
    names=True,
)


def _is_dreamers(file: Path, stored: dict[str, Stored]) -> bool:
    """Whether rows begin where `is_first` says, or each file is an episode and nothing in it cuts it."""
    names = {name.split("/")[-1] for name in stored}
    if is_chunk(file) or names & {*FIRST}:
        return True
    return "action" in stored and not names & CUTS


@contextmanager
def _opened(path: Path) -> Iterator[NpzArrays]:
    yield NpzArrays(path)
