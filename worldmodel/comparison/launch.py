"""Runs side by side: in processes of this machine, or as tasks of Ray. A run that fails does not stop the others."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from worldmodel.comparison.plan import finished, write_failures
from worldmodel.comparison.progress import ComparisonProgress
from worldmodel.comparison.results import Failure, run_folder
from worldmodel.errors import UserError
from worldmodel.runs.cluster import ray_cluster

Launcher = Literal["local", "ray"]
LAUNCHERS: tuple[Launcher, ...] = ("local", "ray")
WORKER = "worldmodel.comparison.run"
GRACE = 5.0  # seconds that a process has to end by itself
ERROR_LINE = re.compile(r"worldmodel: error: (.*)|((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")


@dataclass(frozen=True)
class Resources:
    """What one run takes."""

    threads: int  # of torch on the CPU, in each process
    cores: int
    gpus: int


@dataclass(frozen=True)
class Task:
    """One run as a process."""

    out: Path
    slug: str
    seed: int
    folder: Path  # it starts in
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        """Of all that it prints."""
        return log_path(self.out, self.slug, self.seed)


Submit = Callable[[Task], "Future[int]"]


def side_by_side(jobs: int | None, resources: Resources, cores: int, gpus: int) -> int:
    """Runs at once on a machine with so many cores and visible GPUs: those asked for, else as many as there is room.

    Raises:
        UserError: if there are fewer GPUs than that; cores can be shared.
    """
    room = gpus // resources.gpus if resources.gpus else cores // resources.cores
    if resources.gpus and jobs is not None and jobs > room:
        raise UserError(f"--jobs {jobs} takes {jobs * resources.gpus} GPUs, {gpus} can be seen: at most --jobs {room}")
    return jobs or max(1, room)


def log_path(out: Path, slug: str, seed: int) -> Path:
    """Where the output of a run goes."""
    return run_folder(out, slug, seed).with_suffix(".log")


def launch(out: Path, runs: list[dict[str, Any]], launcher: Launcher, jobs: int, resources: Resources) -> list[Failure]:
    """Train and measure the runs that are not finished yet; returns those that failed.

    Args:
        out: of the comparison.
        runs: of its plan.
        launcher: `local` processes, or `ray`: the cluster that RAY_ADDRESS names, else one on this machine. A cluster's
            machines must share the folder, the data and the installation, at the same paths.
        jobs: runs side by side; a Ray cluster decides by its cores and GPUs.
        resources: of each.
    """
    waiting = [run for run in runs if finished(out, run) is None]
    failures: list[Failure] = []
    write_failures(out, failures)
    for run in waiting:
        log_path(out, run["slug"], run["seed"]).parent.mkdir(parents=True, exist_ok=True)
        log_path(out, run["slug"], run["seed"]).unlink(missing_ok=True)
    engine = _local(jobs, resources) if launcher == "local" else _ray(jobs, resources)
    with ComparisonProgress(len(runs) - len(waiting), len(runs)) as progress, engine as submit:
        environment = {"OMP_NUM_THREADS": str(resources.threads)}
        futures: dict[Future[int], dict[str, Any]] = {}
        for run in waiting:
            futures[submit(Task(out, run["slug"], run["seed"], Path.cwd(), environment))] = run
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                failure = _failure(out, futures[future], future)
                if failure is not None:
                    failures.append(failure)
                    write_failures(out, failures)
                progress.end(_label(futures[future]), failure)
            logs = {_label(futures[f]): log_path(out, futures[f]["slug"], futures[f]["seed"]) for f in pending}
            progress.update({label: path for label, path in logs.items() if path.is_file()})
    return failures


def _label(run: dict[str, Any]) -> str:
    return f"{run['variant']}, seed {run['seed']}"


# --- engines ---------------------------------------------------------------------------------------------------------


@contextmanager
def _local(jobs: int, resources: Resources) -> Iterator[Submit]:
    """Yields what starts a task as soon as one of `jobs` places is free. An exception ends all that run."""
    places: SimpleQueue[str] = SimpleQueue()
    for place in range(jobs):
        places.put(devices_of(place, resources.gpus))
    alive: set[subprocess.Popen[bytes]] = set()
    starting, stopped = threading.Lock(), threading.Event()

    def run(task: Task) -> int:
        devices = places.get()
        try:
            if devices:
                task = replace(task, environment=task.environment | {"CUDA_VISIBLE_DEVICES": devices})
            with starting:
                if stopped.is_set():
                    return -signal.SIGTERM
                process = start(task)
                alive.add(process)
            status = process.wait()
            alive.discard(process)
            return status
        finally:
            places.put(devices)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda task: pool.submit(run, task)
        except BaseException:
            with starting:
                stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            stop(list(alive))
            raise


@contextmanager
def _ray(jobs: int, resources: Resources) -> Iterator[Submit]:
    """The same by Ray, which queues tasks until cores and GPUs are free."""
    with ray_cluster("--launcher ray", jobs * resources.cores) as ray:
        options: dict[str, Any] = {"num_cpus": resources.cores, "num_gpus": resources.gpus, "max_retries": 0}
        remote: Any = ray.remote(**options)(_to_its_end)
        yield lambda task: remote.remote(task).future()


def _to_its_end(task: Task) -> int:
    return start(task).wait()


def devices_of(place: int, gpus: int) -> str:
    """CUDA_VISIBLE_DEVICES of the place: its own share of what this process sees; empty, where it takes no GPU."""
    if not gpus:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else list(map(str, range((place + 1) * gpus)))
    return ",".join(ids[place * gpus : (place + 1) * gpus])


# --- one process -----------------------------------------------------------------------------------------------------


def start(task: Task) -> "subprocess.Popen[bytes]":
    """Start the process of a run, in a session of its own: a Ctrl-C at the terminal reaches only who started it.

    Its stdin is a pipe that nobody writes to. It ends with this process, however that dies: the worker sees to it.
    """
    command = [sys.executable, "-m", WORKER, str(task.out), task.slug, str(task.seed)]
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=task.folder,
            env=os.environ | task.environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(processes: list["subprocess.Popen[bytes]"]) -> None:
    """End processes and all that they started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def _failure(out: Path, run: dict[str, Any], future: "Future[int]") -> Failure | None:
    """What went wrong with a run that has ended; None if it has a result."""
    if (error := future.exception()) is None:
        if future.result() == 0 and finished(out, run) is not None:
            return None
        reason = failure_reason(future.result(), log_path(out, run["slug"], run["seed"]))
    else:  # Ray lost the task
        reason = " ".join(str(error).split())[:300]
    log = log_path(out, run["slug"], run["seed"]).relative_to(out).as_posix()
    return Failure(run["variant"], run["axes"], run["seed"], reason, log)


def failure_reason(status: int, log: Path) -> str:
    """One line: the signal that killed a process, or the last error in its log."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (": perhaps out of memory" if -status == signal.SIGKILL else "")
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    for line in reversed(lines):
        if found := ERROR_LINE.fullmatch(line):
            return found[1] or found[2]
    return lines[-1] if lines else f"ended with status {status} and without a word"


def _tail(path: Path, size: int = 20_000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")
