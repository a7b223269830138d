"""The program in processes of its own, which can be killed."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import warm
from warm import PROGRAM, TESTS, variables


def start(
    arguments: Iterable[Any],
    cwd: Path,
    kill: Sequence[Any] = (),
    program: Sequence[str] = PROGRAM,
    **environment: str,
) -> subprocess.Popen:
    """The program, or what stands for it, in a process group of its own; with `kill`, (step, signal), see killed.py."""
    program = [str(TESTS / "faults" / "killed.py"), *map(str, kill)] if kill else program
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=variables(**environment), stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def end(process: subprocess.Popen, timeout: float = 300) -> subprocess.CompletedProcess:
    """What it said until its end; with its whole group it is gone behind this, however it went."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        kill_all(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(arguments: Iterable[Any], cwd: Path, kill: Sequence[Any] = (), timeout: float = 300, **environment: str):
    """From its start to its end; warm, where nothing is to happen to it."""
    if not kill and not environment:
        return warm.run(arguments, cwd, timeout)
    return end(start(arguments, cwd, kill, **environment), timeout)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the whole group, as far as it is still there."""
    warm.kill(process.pid)
    process.wait()


def wait_for(path: Path, process: subprocess.Popen, newer_than: int = 0, timeout: float = 300) -> None:
    """Until the file is there, changed behind a time (st_mtime_ns), or the process has ended."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns > newer_than:
            return
        time.sleep(0.002)
    assert process.poll() is not None, f"no {path} in {timeout} s"


def children(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
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
