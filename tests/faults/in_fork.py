"""A command of the program in a fork of this process, which has imported everything and writes no bytecode."""

import os
import sys
import traceback
from collections.abc import Callable

sys.dont_write_bytecode = True  # or half of a module would stay behind

from worldmodel.cli import main  # noqa: E402


def run(words: list[str], prepare: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Status, negative for a signal, and stderr of the command; `prepare` is called in the fork before it."""
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(sending, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.closerange(3, 64)
        prepare()
        status: object = 1
        try:
            main(words)
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
    os.close(sending)
    with os.fdopen(receiving) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
