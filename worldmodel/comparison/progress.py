"""How far a comparison is: one bar on a terminal, plain lines elsewhere."""

import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from worldmodel.comparison.results import Failure

LINE_SECONDS = 30.0
STEP = re.compile(r"^step (\d+)/(\d+)", re.MULTILINE)  # as FitProgress prints it where there is no terminal


class ComparisonProgress:
    """Runs done, failed and running, with their steps, and the time left of the whole.

    Args:
        done: runs that were finished before.
        total: runs of the plan.
    """

    def __init__(self, done: int, total: int) -> None:
        self.done, self.total, self.failed = done, total, 0
        self._before, self._begin, self._shown = done, time.monotonic(), time.monotonic()
        self._running: set[str] = set()
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self.done:
            self._console.print(f"{self.done} of {self.total} runs are finished already")
        if sys.stdout.isatty():
            columns = TextColumn("comparing"), BarColumn(), TextColumn("{task.fields[state]}")
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._bar.add_task("compare", total=self.total, completed=self.done, state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def end(self, label: str, failure: Failure | None) -> None:
        """A run has ended, with a result or without."""
        self._running.discard(label)
        if failure is None:
            self.done += 1
            self._print(f"done: {label} ({self.done} of {self.total})")
        else:
            self.failed += 1
            self._print(f"FAILED: {label}: {failure.reason} (log: {failure.log})")

    def update(self, running: dict[str, Path]) -> None:
        """Show where things stand.

        Args:
            running: the logs of the runs that have started and not ended.
        """
        for label in running.keys() - self._running:
            self._running.add(label)
            if self._bar is None:
                self._print(f"started: {label}")
        steps = {label: _step(path) for label, path in running.items()}
        reached = self.done + self.failed + sum(step / total for step, total in steps.values())
        if self._bar is not None:
            self._bar.update(self._task, completed=reached, state=self._state(steps, reached))
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._print(self._state(steps, reached))

    def _state(self, steps: dict[str, tuple[int, int]], reached: float) -> str:
        words = [f"{self.done}/{self.total} runs"]
        words += [f"{self.failed} failed"] if self.failed else []
        words += [f"{label} {step}/{total}" if step else label for label, (step, total) in steps.items()]
        here = reached - self._before
        if here > 0:
            left = (time.monotonic() - self._begin) * (self.total - reached) / here
            words.append(f"about {_clock(left)} left")
        return "  ".join(words)

    def _print(self, line: str) -> None:
        self._shown = time.monotonic()
        self._console.print(line, markup=False)
        self._console.file.flush()


def _step(log: Path) -> tuple[int, int]:
    """The last step that a run's log tells of, and how many it plans; (0, 1) before the first."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        found = STEP.findall(file.read().decode(errors="replace"))
    return (int(found[-1][0]), int(found[-1][1])) if found else (0, 1)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
