"""A folder that a program works in for long: nobody else does meanwhile, and a stop ends with what is kept."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from worldmodel.errors import UserError

ERROR_LINE = re.compile(r"worldmodel: error: (.*)|((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")
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
def interruptible(kept: Callable[[], str], console: Console) -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM end with a word on what is kept, status 130 and 143.

    What is raised where a signal comes can be lost: Python ignores it in a destructor, of which Ray has many. What is
    yielded raises it again, to be called every now and then.
    """
    came: list[int] = []

    def stop(number: int, frame: Any = None) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    def stop_if_asked() -> None:
        if came:
            stop(came[0])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_if_asked
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code not in (TERMINATED, signal.SIGTERM):
            raise
        console.print(f"interrupted: {kept()}; the same command goes on from there")
        raise SystemExit(130 if isinstance(end, KeyboardInterrupt) else TERMINATED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure_reason(status: int, log: Path) -> str:
    """Why a process failed, in one line: the signal that killed it, or the last error in its log."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (": perhaps out of memory" if -status == signal.SIGKILL else "")
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    for line in reversed(lines):
        if found := ERROR_LINE.fullmatch(line):
            return found[1] or found[2]
    return lines[-1] if lines else f"ended with status {status} and no output"


def _tail(path: Path, size: int = 20_000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")
