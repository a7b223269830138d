"""Runs side by side, as processes of this machine or tasks of Ray. A run that fails does not stop the others."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from worldmodel.comparison.folder import finished, write_failures
from worldmodel.comparison.processes import Task, start, stop
from worldmodel.comparison.progress import ComparisonProgress
from worldmodel.comparison.results import Failure, run_folder
from worldmodel.errors import UserError, failure_reason
from worldmodel.runs.cluster import ray_cluster

Launcher = Literal["local", "ray"]
LAUNCHERS: tuple[Launcher, ...] = ("local", "ray")


@dataclass(frozen=True)
class Resources:
    """The resources of one run."""

    threads: int  # of torch on the CPU, per process
    cores: int
    gpus: int


Submit = Callable[[Task], "Future[int]"]


def side_by_side(jobs: int | None, resources: Resources, cores: int, gpus: int) -> int:
    """How many runs are trained at once: `jobs`, or else as many as fit on the cores, or the visible GPUs.

    Raises:
        UserError: if there are too few GPUs; cores can be shared.
    """
    room = gpus // resources.gpus if resources.gpus else cores // resources.cores
    if resources.gpus and jobs is not None and jobs > room:
        raise UserError(
            f"--jobs {jobs} needs {jobs * resources.gpus} GPUs, but {gpus} are visible: at most --jobs {room}"
        )
    return jobs or max(1, room)


@dataclass(frozen=True)
class Engine:
    """What trains: where, how many side by side, and what each takes."""

    launcher: Launcher
    jobs: int
    resources: Resources
    stop_if_asked: Callable[[], None] = lambda: None  # called now and then

    def train(
        self,
        tasks: list[Task],
        has_result: Callable[[Task], bool],
        failed: Callable[[Task, str], None],
        progress: ComparisonProgress,
    ) -> None:
        """Run tasks to their ends; one that fails stops no other.

        Args:
            tasks: in their order.
            has_result: whether a task that has ended has left its result.
            failed: called for one that has not, with the reason in one line.
            progress: shows them.
        """
        for task in tasks:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            task.log.unlink(missing_ok=True)
        engine = _local(self.jobs, self.resources) if self.launcher == "local" else _ray(self.jobs, self.resources)
        with progress, engine as submit:
            pending = {submit(task): task for task in tasks}
            while pending:
                self.stop_if_asked()
                for future in wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    task = pending.pop(future)
                    reason = _failure(task, future, has_result)
                    if reason is not None:
                        failed(task, reason)
                    progress.end(task, reason)
                progress.update({task.label: task.log for task in pending.values() if task.log.is_file()})

    @property
    def environment(self) -> dict[str, str]:
        """Further variables of a task."""
        return {"OMP_NUM_THREADS": str(self.resources.threads)}


def launch(out: Path, runs: list[dict[str, Any]], engine: Engine) -> list[Failure]:
    """Train and measure the runs of a design that are not finished yet; return those that failed.

    A Ray cluster's machines must share the folder, the data and the installation, at the same paths.
    """
    by_task = {_task_of(out, run, engine): run for run in runs}
    tasks = [task for task, run in by_task.items() if finished(out, run) is None]
    failures: list[Failure] = []

    def failed(task: Task, reason: str) -> None:
        run, log = by_task[task], task.log.relative_to(out).as_posix()
        failures.append(Failure(run["variant"], run["axes"], run["seed"], reason, log))
        write_failures(out, failures)

    write_failures(out, failures)
    progress = ComparisonProgress("comparing", "runs", len(runs) - len(tasks), len(runs))
    engine.train(tasks, lambda task: finished(out, by_task[task]) is not None, failed, progress)
    return failures


def _task_of(out: Path, run: dict[str, Any], engine: Engine) -> Task:
    words = (str(out), run["slug"], str(run["seed"]))
    log = run_folder(out, run["slug"], run["seed"]).with_suffix(".log")
    return Task("run", words, f"{run['variant']}, seed {run['seed']}", log, Path.cwd(), engine.environment)


@contextmanager
def _local(jobs: int, resources: Resources) -> Iterator[Submit]:
    """Yield a function that starts a task as soon as one of `jobs` places is free. An exception ends all runs."""
    places: SimpleQueue[str] = SimpleQueue()
    for place in range(jobs):
        places.put(devices_of(place, resources.gpus))
    alive: set[BaseProcess] = set()
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
            process.join()
            alive.discard(process)
            return _status(process)
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
    """The same with Ray, which queues tasks until cores and GPUs are free."""
    with ray_cluster("--launcher ray", jobs * resources.cores) as ray:
        options: dict[str, Any] = {"num_cpus": resources.cores, "num_gpus": resources.gpus, "max_retries": 0}
        remote: Any = ray.remote(**options)(_run)
        yield lambda task: remote.remote(task).future()


def _run(task: Task) -> int:
    process = start(task)
    process.join()
    return _status(process)


def _status(process: BaseProcess) -> int:
    assert process.exitcode is not None, "it has ended"
    return process.exitcode


def devices_of(place: int, gpus: int) -> str:
    """CUDA_VISIBLE_DEVICES of the place: its share of the GPUs that this process sees; empty if it takes none."""
    if not gpus:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else list(map(str, range((place + 1) * gpus)))
    return ",".join(ids[place * gpus : (place + 1) * gpus])


def _failure(task: Task, future: "Future[int]", has_result: Callable[[Task], bool]) -> str | None:
    """Why a task that has ended has no result; None if it has one."""
    if (error := future.exception()) is not None:  # Ray lost the task
        return " ".join(str(error).split())[:300]
    return None if future.result() == 0 and has_result(task) else failure_reason(future.result(), task.log)
