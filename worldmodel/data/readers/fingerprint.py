"""A short name for the state of a dataset's files, without reading them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """SHA-256, as hexadecimal digits, over the name below `root`, the size and the time of change (ns) of every file.

    The order of `files` does not matter, nor where `root` lies.
    """
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
