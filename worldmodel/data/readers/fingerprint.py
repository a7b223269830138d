"""A short name for the state of a dataset's files, without reading them."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from worldmodel.errors import UserError


def fingerprint(files: Collection[Path], root: Path) -> str:
    """SHA-256, as hexadecimal digits, over the name below `root`, the size and the time of change (ns) of every file.

    The order of `files` does not matter, nor where `root` lies.

    Raises:
        UserError: if one of them is a link that leaves the folder.
    """
    digest = hashlib.sha256()
    for file in files:
        if not file.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{file} leads outside of the dataset's folder, which is not followed; if this is a cache of links,"
                " copy it with `cp -rL`"
            )
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
