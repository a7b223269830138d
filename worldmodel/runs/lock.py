"""The right to work in a folder: one process at a time."""

import os
import socket
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from worldmodel.errors import UserError

LOCK, OWNER = ".lock", ".owner"  # files in the folder


class RunLock:
    """Holds a folder until it is released or the process dies: the operating system frees the lock of a dead process.

    Args:
        folder: made if it is missing.
        option: what the user chooses the folder with.
        timeout: seconds to wait for another process.

    Raises:
        UserError: if another process holds the folder, which is named, or nothing can be written there.
    """

    def __init__(self, folder: Path, option: str = "--run_dir", timeout: float = 0) -> None:
        self._lock, owner = FileLock(folder / LOCK), folder / OWNER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=timeout)
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout:
            who = owner.read_text().strip() if owner.is_file() else "another process"
            raise UserError(f"{who} is training into {folder}: wait for it, or choose another {option}") from None
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be written to: {error.strerror}; choose another {option}"
            ) from error

    def release(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
