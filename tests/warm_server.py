"""The server of warm starts (warm.py): it has imported the program, and forks for every request."""

import atexit
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NoReturn

WIDTH = 8  # of a number that the server sends
REDRAWN = ("rollout.png", "recall.png")  # after each validation


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
