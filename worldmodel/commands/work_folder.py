"""A folder that a program works in for long: nobody else does meanwhile, and a stop ends with what is kept."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from worldmodel.errors import UserError

TERMINATED = 128 + signal.SIGTERM  # a status; Ray's own handler ends with the bare number


@contextmanager
def alone(out: Path, command: str) -> Iterator[None]:
    """Nobody else works in this folder; the kernel lets go of the lock when a process dies."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; choose another --out") from error
    try:
        held = FileLock(out / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"another `worldmodel {command}` is at work in {out}: wait for it, or stop it") from error
    with held:
        yield


@contextmanager
def interruptible(kept: Callable[[], str], console: Console) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with a word on what is kept, status 130 and 143."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code not in (TERMINATED, signal.SIGTERM):
            raise
        console.print(f"interrupted: {kept()}; the same command goes on from there")
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
