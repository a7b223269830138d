"""The processes of a comparison's runs: forks of one that has imported the trainer, which takes seconds, already."""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOM = "worldmodel.comparison"
WORKERS = [f"{ROOM}.{kind}" for kind in ("run", "trial")]
GRACE = 1.0  # seconds that a process has to end after SIGTERM; it saves nothing that its next start would use
FORKS = sys.platform == "linux"  # elsewhere a fork of a process that has imported torch isn't safe


@dataclass(frozen=True, eq=False)
class Task:
    """One run, or a part of one, as a process."""

    kind: str  # the module in this room that is run
    words: tuple[str, ...]  # its arguments
    label: str  # its name in messages
    log: Path  # the file of its output
    folder: Path  # that it starts in
    environment: dict[str, str]  # further variables; those that an import reads are the same for all tasks


def start(task: Task) -> BaseProcess:
    """Start the process of a run, in a session of its own: a Ctrl-C at the terminal reaches only this process.

    When this process dies, however it does, so do the run and its children.
    """
    context: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
    if FORKS:
        context.set_forkserver_preload(WORKERS)
        _import_first(task.environment)
    task.log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_work, args=(task, os.environ | task.environment))
    process.start()
    return process


def stop(processes: list[BaseProcess]) -> None:
    """End processes and all their children."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                try:
                    os.killpg(process.pid or 0, end)
                except ProcessLookupError:  # it has no session of its own yet
                    os.kill(process.pid or 0, end)
        for process in processes:
            process.join(GRACE)


def _import_first(variables: dict[str, str]) -> None:
    """Start the process that is forked, unless it runs, with variables that an import may read.

    It imports nothing from the folder that it starts in, as the command itself.
    """
    variables = variables | {"PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(task: Task, variables: dict[str, str]) -> None:
    """Be `python -m` of the task's module."""
    os.setsid()
    with task.log.open("wb") as log, open(os.devnull, "rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    os.chdir(task.folder)
    os.environ.clear()
    os.environ.update(variables)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    module = f"{ROOM}.{task.kind}"
    sys.argv = [module, *task.words]
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _end_with_starter() -> None:
    """Kill this run and its children once the process that started it has died."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        starter.join()
        os.killpg(os.getpgid(0), signal.SIGKILL)
