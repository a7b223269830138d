"""The user's mistakes, and why a process failed: one line that names the thing and the way out."""

import re
import signal
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

ERROR_LINE = re.compile(r"worldmodel: error: (.*)|((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")
TAIL_BYTES = 20_000  # of a log, that are searched for an error


class UserError(ValueError):
    """A mistake that the user can correct. The command line prints its message alone and ends with status 2."""


class Damaged(UserError):
    """A file that does not hold what was written to it."""


class CannotWrite(UserError, OSError):
    """A file that cannot be written: the OSError with its errno, strerror and filename, and what to do."""

    def __init__(self, error: OSError, path: Path, size: int) -> None:
        OSError.__init__(self, error.errno, error.strerror or str(error), str(path))
        self.size = size  # bytes that were written

    def __str__(self) -> str:
        reason = f"{self.strerror} (after {self.size:,} bytes)" if self.size else self.strerror
        return f"{self.filename} cannot be written: {reason}. Make room or choose another folder, and run it again"


MOST_SEED = 2**32 - 1  # that NumPy takes
MOST_THREADS = 4096


def at_least(least: float, prefix: str, /, **values: float | None) -> None:
    """Check numbers that the user gave.

    Args:
        least: the lowest value allowed.
        prefix: what stands before the names where the user writes them: "data.", "--".
        values: by name; None passes.

    Raises:
        UserError: "data.steps is 0: it must be at least 1".
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{prefix}{name} is {value}: it must be at least {least}")


def within(least: float, most: float, prefix: str, /, **values: float | None) -> None:
    """As `at_least`, for numbers that may not be above `most` either."""
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            raise UserError(f"{prefix}{name} is {value}: it must be from {least} to {most}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """A half-sentence with the choice closest to `name`, or all choices if none is close."""
    choices = list(choices)
    by_lower = {choice.lower(): choice for choice in choices}
    if close := get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5):
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"choose one of: {', '.join(choices)}" if choices else "there is none to choose from"


def choose(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`.

    Raises:
        UserError: with the nearest choice and all of them.
    """
    choices = list(choices)
    if name in choices:
        return name
    hint = nearest(name, choices)
    every = "" if hint.startswith("choose") else f" ({kind}s: {', '.join(choices)})"
    raise UserError(f"unknown {kind} {name!r}: {hint}{every}")


def reason_of(error: BaseException) -> str:
    """An exception in one line: type, message, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{where}"


def failure_reason(status: int, log: Path) -> str:
    """Why a process failed, in one line: the signal that killed it, or the last error in its log."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (": perhaps out of memory" if -status == signal.SIGKILL else "")
    text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if match := ERROR_LINE.fullmatch(line):
            return match[1] or match[2]
    return lines[-1] if lines else f"ended with status {status} and no output"
