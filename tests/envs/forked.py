"""A process forked off the tests: it has imported everything, so it costs no start."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Forked:
    """Runs a function in a child of its own session.

    Args:
        function: called in the child; a SystemExit gives the status, another exception 1.
        out: file descriptor for its stdout.
        err: file for its stderr.
    """

    def __init__(self, function: Callable[[], Any], out: int, err: Path) -> None:
        self.err = err
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            function()
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def is_running(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
