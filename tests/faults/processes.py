"""What happens to the processes of a program: they are killed, and they end."""

import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import warm
from warm import TESTS, Process


def start(
    arguments: Iterable[Any],
    cwd: Path,
    kill: Sequence[Any] = (),
    program: Sequence[str] = warm.PROGRAM,
    **further: str,
) -> Process:
    """Start the program, or what stands for it; with `kill`, (step, signals), see killed.py."""
    program = [str(TESTS / "faults" / "killed.py"), *map(str, kill)] if kill else program
    return warm.start(arguments, cwd, program, **further)


def run(arguments: Iterable[Any], cwd: Path, kill: Sequence[Any] = (), timeout: float = 300, **further: str):
    """Run the program to its end."""
    return start(arguments, cwd, kill, **further).end(timeout)


def run_ranks(ranks: int, arguments: Iterable[Any], cwd: Path, program: Sequence[str] = warm.PROGRAM) -> None:
    """Run the program on several ranks to its end, as torchrun does, and see none of them fail."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    each = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    started = [warm.start(arguments, cwd, program, late=shared | own) for own in each]
    ended = [process.end() for process in started]
    assert not any(process.returncode for process in ended), [process.stderr[-3000:] for process in ended]


def wait_for(path: Path, process: Process, newer_than: int = 0, timeout: float = 300) -> None:
    """Wait until the file exists and changed after a time (st_mtime_ns), or the process has ended."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns > newer_than:
            return
        time.sleep(0.002)
    assert process.poll() is not None, f"no {path} after {timeout} s"


def children(pid: int) -> list[int]:
    """The descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def gone(pids: Iterable[int], timeout: float = 60) -> bool:
    """Whether all of them end within the time; a zombie has ended."""
    deadline = time.monotonic() + timeout
    left = list(pids)
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if _alive(pid)]
        time.sleep(0.05)
    return not left


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
