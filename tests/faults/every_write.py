"""Commands, each in a process of its own whose files can have so many bytes at most: a disk that is full by then.

python every_write.py OUT LIMIT COMMAND LIMIT COMMAND ...: a row of JSON for each, [status, stderr, folder]; "OUT/" in a
command becomes that new folder.
"""

import json
import os
import resource
import sys
import traceback
from pathlib import Path

sys.dont_write_bytecode = True  # or half of a module would stay behind

from worldmodel.cli import main  # noqa: E402


def attempt(words: list[str], limit: int) -> tuple[int, str]:
    """Status and stderr of a command."""
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(sending, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.closerange(3, 64)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
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


out, *attempts = sys.argv[1:]
for number, (limit, command) in enumerate(zip(attempts[::2], attempts[1::2], strict=True)):
    folder = Path(out, str(number))
    folder.mkdir(parents=True)
    words = [word.replace("OUT/", f"{folder}/") for word in command.split(" ")]
    print(json.dumps([*attempt(words, int(limit)), str(folder)]), flush=True)
