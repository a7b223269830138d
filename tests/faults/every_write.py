"""Commands, each in a process of its own whose files can have so many bytes at most: a disk that is full by then.

python every_write.py OUT LIMIT COMMAND LIMIT COMMAND ...: a row of JSON for each, [status, stderr, folder]; "OUT/" in a
command becomes that new folder.
"""

import json
import resource
import sys
from functools import partial
from pathlib import Path

from in_fork import run

out, *attempts = sys.argv[1:]
for number, (limit, command) in enumerate(zip(attempts[::2], attempts[1::2], strict=True)):
    folder = Path(out, str(number))
    folder.mkdir(parents=True)
    words = [word.replace("OUT/", f"{folder}/") for word in command.split(" ")]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    print(json.dumps([*run(words, full), str(folder)]), flush=True)
