"""The program in processes of its own, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from conftest import TESTS

PROGRAM = ["-m", "worldmodel"]


def start(
    arguments: Iterable[Any],
    cwd: Path,
    kill: Sequence[Any] = (),
    program: Sequence[str] = PROGRAM,
    **environment: str,
) -> subprocess.Popen:
    """The program, or what stands for it, in a process group of its own; with `kill`, (step, signal), see killed.py."""
    variables = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
    program = [str(TESTS / "faults" / "killed.py"), *map(str, kill)] if kill else program
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=-1, stderr=-1, text=True, start_new_session=True)


def end(process: subprocess.Popen, timeout: float = 300) -> subprocess.CompletedProcess:
    """What it said until its end; with its whole group it is gone behind this, however it went."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        kill_all(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(arguments: Iterable[Any], cwd: Path, kill: Sequence[Any] = (), timeout: float = 300, **environment: str):
    """From its start to its end."""
    return end(start(arguments, cwd, kill, **environment), timeout)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the whole group, as far as it is still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
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
