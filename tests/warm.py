"""Start the program warm: forked from a server that has already imported it (warm_server.py).

Importing torch and Lightning takes seconds, and the tests start the program several hundred times. A fork has its own
arguments, folder, environment, output and session, and ends like any other interpreter. An import may have read the
environment, so a program whose environment differs from the server's is started cold.

All workers of pytest-xdist share a server, which is ready before they start (conftest.py): they then find compiled what
it has imported.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from warm_server import WIDTH

TESTS = Path(__file__).parent
PROGRAM = ["-m", "worldmodel"]
ROOM = "WORLDMODEL_WARM"  # the variable that names the path at which the server of all workers listens
ENVIRONMENT = dict(os.environ)  # as the tests were started
UNREAD = {"PYTEST_CURRENT_TEST"}  # changes with every test; the program does not read it


def variables(environment: Mapping[str, str] = os.environ, **further: str) -> dict[str, str]:
    """The environment of the program under test: this checkout's package, whichever is installed."""
    path = f"{TESTS}{os.pathsep}{TESTS.parent}"
    return {**environment} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | further


class Process:
    """A running program, in a session of its own.

    Args:
        words: what follows `python` on the command line: `-m module`, `-c code` or a script, then its arguments.
        cwd: its folder.
        environment: all its variables.
        late: further variables, which no import of a warm start may need.
    """

    def __init__(self, words: Sequence[str], cwd: Path, environment: dict[str, str], late: dict[str, str]) -> None:
        self.args, self.returncode = words, None
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._status, status = os.pipe()
        try:
            _server().ask(words, cwd, environment, late, [self._out.fileno(), self._err.fileno(), status])
        finally:
            os.close(status)
        self.pid = self._read()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None and self._ready(0):
            self.returncode = self._read()
        return self.returncode

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Wait for its end; then kill what is left of its session.

        Raises:
            subprocess.TimeoutExpired: if it takes longer than `timeout` seconds.
        """
        try:
            if self.returncode is None and not self._ready(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout)
        finally:
            self.kill()
        output = [file.seek(0) or file.read() for file in (self._out, self._err)]
        return subprocess.CompletedProcess(self.args, self.returncode, *output)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        if self.returncode is None:
            self.returncode = self._read()
        return self.returncode

    def kill(self) -> None:
        """SIGKILL to what is left of its session, and wait for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def _ready(self, timeout: float) -> bool:
        return bool(select.select([self._status], [], [], timeout)[0])

    def _read(self) -> int:
        """Its process id at first, then its exit status."""
        number = os.read(self._status, WIDTH)
        assert number, "the server of warm starts has died"
        return int(number)

    def __del__(self) -> None:
        os.close(self._status)
        self._out.close()
        self._err.close()


def restore() -> None:
    """Undo what a library set in the environment: the programs that are started later would all be started cold."""
    os.environ.update(ENVIRONMENT)
    for name in os.environ.keys() - ENVIRONMENT.keys() - UNREAD:
        del os.environ[name]


def start(
    arguments: Iterable[Any],
    cwd: Path,
    program: Sequence[str] = PROGRAM,
    late: dict[str, str] | None = None,
    **further: str,
) -> Process:
    """Start the program, or what stands for it, with further environment variables."""
    return Process([*program, *map(str, arguments)], cwd, variables(**further), late or {})


def run(arguments: Iterable[Any], cwd: Path, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess:
    """Run the program to its end."""
    return start(arguments, cwd, **options).end(timeout)


@cache
def listening() -> str:
    """The path at which a server listens; unless the environment names one, it is started, and ends with us."""
    if path := os.environ.get(ROOM):
        return path
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    path = f"{folder.name}/room"
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as room, theirs:
        room.bind(path)
        room.listen()
        fds = [room.fileno(), theirs.fileno()]
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "warm_server.py"), *map(str, fds)],
            env=variables(ENVIRONMENT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
        )
    ready = ours.recv(1)
    assert ready, "the server of warm starts has died"

    def close() -> None:
        ours.close()
        process.wait()
        folder.cleanup()

    atexit.register(close)
    return path


class Server:
    """The tests' end of the process that forks."""

    def __init__(self) -> None:
        self.environment = variables(ENVIRONMENT)
        self.room = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.room.connect(listening())

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether a process started with this environment would have imported the same."""
        return {name for name, _ in environment.items() ^ self.environment.items()} <= UNREAD

    def ask(self, words: Sequence[str], cwd: Path, environment: dict, late: dict, fds: list[int]) -> None:
        request = {"warm": self.fits(environment), "words": words, "cwd": str(cwd), "environment": environment | late}
        socket.send_fds(self.room, [json.dumps(request).encode()], fds)


_server = cache(Server)
