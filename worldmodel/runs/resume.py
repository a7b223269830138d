"""`fit --resume`: which run goes on, from which of its checkpoints, and that nobody else is at it."""

import os
import re
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from worldmodel.errors import UserError
from worldmodel.runs.checkpoint import NAME, damage
from worldmodel.runs.folder import is_first_rank

CHOSEN = "WORLDMODEL_RESUME_FROM"  # processes that Lightning starts for further ranks read it
LOCK, OWNER = ".lock", ".owner"


def find_run(parent: Path, name: str, asked: Path | None) -> Path | None:
    """The folder of the run to go on with: the one asked for, or the newest `name`, `name-2`, ... below `parent`."""
    if asked is not None:
        return asked if asked.is_dir() else None
    numbered = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
    found = [(int(match[1] or 1), path) for path in parent.glob("*") if (match := numbered.fullmatch(path.name))]
    return max(found)[1] if found else None


def newest_good(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, the same on all ranks; None where it saved none.

    Says which ones are damaged.

    Raises:
        UserError: if all are.
    """
    if not is_first_rank() and CHOSEN in os.environ:
        return Path(os.environ[CHOSEN]) if os.environ[CHOSEN] else None
    checkpoints = folder / "checkpoints"
    there = [path for path in (checkpoints / NAME, *sorted(checkpoints.glob("last-*.ckpt"))) if path.is_file()]
    good: Path | None = None
    for path in there:
        problem = damage(path)
        if problem is None:
            good = path
            break
        print(f"{path} {problem}: trying the one before", flush=True)
    if there and good is None:
        raise UserError(f"no checkpoint in {checkpoints} is whole: begin a new run, without --resume")
    os.environ[CHOSEN] = "" if good is None else str(good.resolve())
    return good


class RunLock:
    """One trainer a folder, as long as its process lives: the operating system lets go of the lock of a dead one.

    Args:
        folder: of the run.

    Raises:
        UserError: if another process trains into it, naming it, or nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
            (folder / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout:
            owner = (folder / OWNER).read_text().strip() if (folder / OWNER).is_file() else "another process"
            raise UserError(f"{owner} is training into {folder}: wait for it, or choose another --run_dir") from None
        except OSError as error:
            raise UserError(
                f"the run's folder {folder} cannot be written to: {error.strerror}; choose another --run_dir"
            ) from error
