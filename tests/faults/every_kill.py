"""Commands that are killed wherever they change a file, and then run again.

python every_kill.py OUT EVERY COMMAND ...: kills each command at every EVERY-th change of a file in a new folder, and
runs it again; a row of JSON for each kill, [status, stderr, folder, number of the change]. "OUT/" in a command becomes
the folder; what stands before " && " is run undisturbed.
"""

import json
import os
import signal
import sys
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from in_fork import run

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


def kill_at(number: int, folder: Path) -> None:
    """Kill this process as it is about to change a file in the folder for the given time."""
    left = [number]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(str(folder)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(command: str, folder: Path, number: int) -> bool:
    """Kill the command at this change, and run it again; False if it ended before."""
    folder.mkdir(parents=True)
    *first, last = (part.replace("OUT/", f"{folder}/").split(" ") for part in command.split(" && "))
    for words in first:
        assert run(words)[0] == 0
    status, said = run(last, partial(kill_at, number, folder))
    if status != -signal.SIGKILL:
        assert status == 0, said
        return False
    print(json.dumps([*run(last), str(folder), number]), flush=True)
    return True


if __name__ == "__main__":
    out, every, *commands = sys.argv[1:]
    for name in {part.split(" ")[0] for command in commands for part in command.split(" && ")}:
        import_module(f"worldmodel.commands.{name}")  # once, for all forks
    for place, command in enumerate(commands):
        for number in count(int(every) // 2 + 1, int(every)):
            if not attempt(command, Path(out, f"{place}-{number}"), number):
                break
