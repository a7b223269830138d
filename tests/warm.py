"""The program in a process that begins warm: forked off one that has imported torch and Lightning, and no more.

A start from nothing is seconds of imports, and the tests start the program some hundred times. Here a server imports
once. Every run is a fork of it, with arguments, folder, environment, output and session of its own, and ends as any
interpreter does. What a test changed in the environment may be read by an import: such a run starts from nothing, as do
those that are killed or measured (faults/processes.py).
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PROGRAM = ["-m", "worldmodel"]
COMMANDS = ["fit", "compare", "diagnose", "rollout", "plan", "export", "collect"]
EXPERIMENTS = ["policies"]
OWN = {"PYTEST_CURRENT_TEST"}  # every test's; nobody reads it


def variables(**further: str) -> dict[str, str]:
    """The environment of the program under test."""
    path = f"{TESTS}{os.pathsep}{TESTS.parent}"  # this checkout's program, whichever is installed
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | further


def run(arguments: Iterable[Any], cwd: Path, timeout: float, **further: str) -> subprocess.CompletedProcess:
    """The program to its end, warm where it can be."""
    words, environment = list(map(str, arguments)), variables(**further)
    server = _server()
    if not server.fits(environment):
        command = [sys.executable, *PROGRAM, *words]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    return server.run(words, cwd, environment, timeout)


class Server:
    """The process that forks, seen from the tests: one request at a time."""

    def __init__(self) -> None:
        self.environment = variables()
        self.room, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:  # its end is this one's: no server outlives the tests
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def close(self) -> None:
        self.room.close()
        self.process.wait()

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether a process that was started with this environment would be as this one."""
        differ = {name for name, _ in environment.items() ^ self.environment.items()}
        return differ <= OWN

    def run(
        self, words: list[str], cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """As `subprocess.run`; behind it the whole session is gone."""
        request = json.dumps([words, str(cwd), environment]).encode()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            socket.send_fds(self.room, [request], [out.fileno(), err.fileno()])
            pid = self._answer(None)
            try:
                status = self._answer(timeout)
            except BaseException as error:
                kill(pid)
                self._answer(None)
                if isinstance(error, TimeoutError):
                    raise subprocess.TimeoutExpired(words, timeout) from None
                raise
            kill(pid)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def _answer(self, timeout: float | None) -> int:
        self.room.settimeout(timeout)
        answer = self.room.recv(100)
        assert answer, "the server of warm starts has died"
        return int(answer)


_server = cache(Server)


def kill(group: int) -> None:
    """SIGKILL to all of a process group that are still there."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


# --- the process itself ----------------------------------------------------------------------------------------------


def serve(room: socket.socket) -> list[str]:
    """Fork a process for every request, and wait for it. Returns in each of them, what it was asked for."""
    while True:
        request, fds, _, _ = socket.recv_fds(room, 1 << 20, 2)
        if not request:
            raise SystemExit
        if pid := os.fork():
            for fd in fds:
                os.close(fd)
            room.send(str(pid).encode())
            room.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
            continue
        os.setsid()
        room.close()
        for fd, place in zip(fds, (1, 2), strict=True):
            os.dup2(fd, place)
            os.close(fd)
        words, cwd, environment = json.loads(request)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        return words


def main() -> None:
    """What was imported must have left no thread, which a fork would lose."""
    for command in COMMANDS:
        import_module(f"worldmodel.commands.{command}")
    for experiment in EXPERIMENTS:
        import_module(f"worldmodel.experiments.{experiment}")
    import numpy as np

    assert len(os.listdir("/proc/self/task")) == 1
    sys.argv[1:] = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = os.getcwd()  # as behind -m
    np.random.seed()  # Python's own generator does so by itself, torch's starts with a constant
    runpy.run_module("worldmodel", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
