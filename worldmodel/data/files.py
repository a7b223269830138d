"""Paths that a user names, looked at before anything is read from them."""

import stat
from pathlib import Path

from worldmodel.errors import UserError


def check_readable(path: Path) -> Path:
    """The path, if it is a file or a folder that may be read, or nothing yet; else a UserError."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!r} is no name in UTF-8, as messages and tables are: rename it") from None
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # it may never end
            raise UserError(f"{path} is a pipe or a device: copy what it gives into a file")
        if stat.S_ISDIR(mode):
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
