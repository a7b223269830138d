"""Standard output and error: always there, and nothing ends because nobody reads them any more."""

import io
import os
import sys
from typing import Any


class _Descriptor(io.FileIO):
    """Leads nowhere, for all who share the descriptor, once its reader has gone (`| head`) or its disk is full.

    A full disk is an error all the same, once.
    """

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            _to_nowhere(self.fileno())  # or the interpreter would fail once more as it ends
            if not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "the output") from error
            return len(data)


def keep_open() -> None:
    """Make sys.stdout and sys.stderr write whatever happens; those that were replaced, in a notebook say, stay.

    One that was closed (`>&-`) leads nowhere from now on: the next file that is opened would be taken for it. What
    their encoding lacks is written as a backslash and its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        encoding, at_once = "utf-8", True
        if stream is not None:
            stream.flush()
            encoding, at_once = stream.encoding, stream.line_buffering or stream.write_through
        binary = io.BufferedWriter(_Descriptor(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(binary, encoding, "backslashreplace", line_buffering=at_once))


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
