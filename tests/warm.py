"""Start the program warm: forked from a server that has already imported it.

Importing torch and Lightning takes seconds, and the tests start the program several hundred times. A fork has its own
arguments, folder, environment, output and session, and ends like any other interpreter. An import may have read the
environment, so a program whose environment differs from the server's is started cold.

All workers of pytest-xdist share a server, which is ready before they start (conftest.py): they then find compiled what
it has imported.
"""

import atexit
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NoReturn

TESTS = Path(__file__).parent
PROGRAM = ["-m", "worldmodel"]
WIDTH = 8  # of a number that the server sends
ROOM = "WORLDMODEL_WARM"  # the variable that names the path at which the server of all workers listens
REDRAWN = ("rollout.png", "recall.png")  # after each validation
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
            [sys.executable, __file__, *map(str, fds)],
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


# --- the server itself -----------------------------------------------------------------------------------------------


def serve(room: socket.socket, owner: socket.socket) -> list[str]:
    """Fork for every request of a client; returns in each program, with its command line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    clients: list[socket.socket] = []
    while True:
        asking = select.select([room, owner, *clients], [], [])[0]
        if owner in asking:
            raise SystemExit
        if room in asking:
            clients.append(room.accept()[0])
        for client in set(asking) - {room}:
            request, fds, _, _ = socket.recv_fds(client, 1 << 20, 3)
            if not request:
                clients.remove(client)
                client.close()
            elif os.fork() == 0:
                for end in (room, owner, *clients):
                    end.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return begin(*fds, **json.loads(request))
            for fd in fds:
                os.close(fd)


def begin(out: int, err: int, status: int, warm: bool, words: list, cwd: str, environment: dict) -> list[str]:
    """Fork the program off this process, which stays to report its end."""
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, f"{code:{WIDTH}}".encode())
        os._exit(0)
    os.setsid()
    os.write(status, f"{os.getpid():{WIDTH}}".encode())
    os.dup2(out, 1)
    os.dup2(err, 2)
    for fd in (out, err, status):
        os.close(fd)
    os.chdir(cwd)
    if not warm:
        os.execve(sys.executable, [sys.executable, *words], environment)
    os.environ.clear()
    os.environ.update(environment)
    return words


def execute(words: list[str]) -> None:
    """Do what `python` does with these words."""
    kind, *rest = words if words[0] in ("-m", "-c") else ("", *words)
    what, *arguments = rest
    sys.argv = [kind or what, *arguments]
    sys.path[0] = os.getcwd() if kind else str(Path(what).parent)
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(what, main.__dict__)
    else:
        runpy.run_path(what, run_name="__main__")


def end(code: int) -> NoReturn:
    """End as an interpreter does, but leave its objects: to delete them is to copy all memory that the fork shares."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def draw_less() -> None:
    """Draw a run's pictures once and without a layout; three of them take longer than a small fit."""
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def savefig_once(self: Figure, file: Any, **options: Any) -> None:
        if not (isinstance(file, Path) and file.name in REDRAWN and file.exists()):
            savefig(self, file, **options)

    Figure.set_layout_engine = lambda self, *arguments, **options: None
    Figure.savefig = savefig_once
    figure = Figure()
    figure.subplots().set(xscale="log", yscale="log", xlabel="steps", ylim=(1e-9, 1e9))
    figure.savefig(io.BytesIO())  # a fork knows the fonts, and how a power of ten is set


def main() -> None:
    """Import the program and serve it; an import must have left no thread, which a fork would lose."""
    for room in ("commands", "experiments"):
        package = import_module(f"worldmodel.{room}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    import numpy as np
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    assert len(os.listdir("/proc/self/task")) == 1
    draw_less()
    gc.freeze()
    room, owner = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    owner.send(b"r")
    words = serve(room, owner)
    rank_zero_only.rank = int(os.environ.get("RANK", 0))  # as Lightning does where it is imported
    np.random.seed()  # Python seeds its generator after a fork itself; torch's starts with a constant
    try:
        execute(words)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        end(error.code or 0)
    end(0)


if __name__ == "__main__":
    main()
