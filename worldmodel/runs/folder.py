"""A run's folder: runs/<experiment>/<run>, never one that is taken, and one process at a time works in it."""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from filelock import FileLock, Timeout

from worldmodel.durable import sync_folder
from worldmodel.errors import UserError

CHOSEN = "WORLDMODEL_RUN_DIR"  # environment variable, by which further ranks that Lightning starts get the folder
LOCK, OWNER = ".lock", ".owner"  # files in the folder
UNFINISHED = ".unfinished"  # folder in it, that holds the results of a command until all are there


def is_first_rank() -> bool:
    """Whether this process is rank 0 or the only one; known before anything distributed has started."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return not ranks or ranks[0] == "0"


def file_name(name: str) -> str:
    """The name of an environment or a rule as part of a folder's name."""
    return name.replace("/", "-").replace(":", "-")


def new_folder(experiment: str, name: str, asked: Path | None, option: str = "--run_dir") -> Path:
    """Make a run's folder on rank 0; other ranks get the same path.

    Args:
        experiment: the folder's parent below runs/.
        name: of the run; a number is appended if it is taken.
        asked: the folder that the user chose, which must be empty or new.
        option: what the user chooses it with.

    Raises:
        UserError: if the chosen folder holds files, or the folder cannot be made.
    """
    if not is_first_rank():  # Lightning's own launcher passes the path on; under torchrun only rank 0 writes
        return Path(os.environ.get(CHOSEN) or asked or Path("runs", experiment, name))
    if asked:
        check_free(asked, option)
    folder = asked or Path("runs", experiment, name)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=asked is not None)
            break
        except OSError as error:
            if asked or not isinstance(error, FileExistsError):
                reason = error.strerror
                raise UserError(f"{folder} cannot be made: {reason}; choose another folder with {option}") from error
            number += 1
            folder = folder.with_name(f"{name}-{number}")
    hand_down(folder)
    return folder


def check_free(folder: Path, option: str) -> None:
    """Raise UserError if the folder that the user chose with this option holds files."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / UNFINISHED).is_dir():
        raise UserError(
            f"the run's folder {folder} is not empty: choose another {option}, so that no run is overwritten"
        )


def check_possible(folder: Path, option: str) -> None:
    """Raise UserError if nothing can be made in the folder, or it cannot be made, where the nearest one above is."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        TemporaryDirectory(dir=above).cleanup()
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another folder with {option}") from error


@contextmanager
def result_folder(command: str, name: str, asked: Path | None) -> Iterator[Path]:
    """Make the folder of a command's results, and yield one in it, whose files move up when the block ends.

    So a process that is killed leaves no half result: the same command begins again.

    Args:
        command: the folder's parent below runs/.
        name: of the folder; a number is appended if it is taken.
        asked: the folder that the user chose with --out, which must be empty or new.

    Raises:
        UserError: see `new_folder`.
    """
    folder = new_folder(command, name, asked, "--out")
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        yield unfinished
        for path in unfinished.iterdir():
            path.replace(folder / path.name)
        unfinished.rmdir()
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(folder)


def hand_down(folder: Path) -> None:
    """Pass the folder's path on to further ranks that this process starts."""
    os.environ[CHOSEN] = str(folder.resolve())


def find_run(parent: Path, name: str, asked: Path | None) -> Path | None:
    """The folder of the run to resume: the one asked for, else the newest of `name`, `name-2`, ... below `parent`.

    A run has a config.yaml, written as its training begins, or a checkpoint; other folders are passed over.
    """
    if asked is not None:
        return asked if asked.is_dir() else None
    numbered = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
    begun = {path.parent for path in parent.glob("*/config.yaml")}
    begun |= {path.parent.parent for path in parent.glob("*/checkpoints/last.ckpt")}
    runs = [(int(match[1] or 1), path) for path in begun if (match := numbered.fullmatch(path.name))]
    return max(runs)[1] if runs else None


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
