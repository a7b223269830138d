"""What a user names: paths, looked at before anything is read from them, YAML, and checkpoints."""

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from worldmodel.errors import UserError, nearest

NAME = "last.ckpt"  # the newest checkpoint in a run's folder checkpoints/
UNTRAINED = "{} needs a trained model: give --ckpt RUN, a run's folder or a checkpoint"
NEWEST = "@last"  # instead of the path of a run


def check_readable(path: Path) -> Path:
    """The path, if it is a file or a folder that may be read, or nothing yet; else a UserError."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!r} is no name in UTF-8, as messages and tables are: rename it") from None
    try:
        check_ends(path)
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return path


def check_ends(path: Path | str) -> None:
    """Raise UserError for a pipe or a device, which may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing there, or no path at all
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a pipe or a device: copy what it gives into a file")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain data.

    Raises:
        UserError: if there is no such file, it cannot be read, or is not YAML.
    """
    if check_readable(path).is_dir():
        raise UserError(f"{path} is a folder, not a YAML file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None
    # what YAML's constructors raise for a value that is not of the type of its tag or form, such as a 30th of February
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None


def find_checkpoint(path: Path) -> Path:
    """The file, or the last checkpoint of the run whose folder is named, or of the newest run below runs/ for @last.

    Raises:
        UserError: if there is none; it names the nearest.
    """
    if str(path) == NEWEST and (runs := list(Path("runs").glob(f"*/*/checkpoints/{NAME}"))):
        return max(runs, key=lambda file: file.stat().st_mtime)
    if path.is_dir() and (inside := path / "checkpoints" / NAME).is_file():
        return inside
    if not path.is_file():
        known = sorted(str(p) for p in Path("runs").glob("*/*/checkpoints/*.ckpt"))
        raise UserError(f"no checkpoint at {path}: {nearest(str(path), known)}")
    return path
