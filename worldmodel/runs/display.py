"""Progress: a bar on a terminal, a line at most every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH_SECONDS = 0.2  # of the bar
LINE_SECONDS = 10.0  # between two lines


def console(width: int | None = None) -> Console:
    """Prints text and tables as they are: what a path or a name holds is never taken for markup.

    Args:
        width: of tables; None: that of the terminal.
    """
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=width)


class Display:
    """Shows how far a task is, as a context manager.

    Args:
        what: the task: "collecting Pendulum-v1".
        total: what it amounts to; None if that is unknown.
        done: what was done before; the speed leaves it out.
        unit: what is counted; None: show a percentage alone.
        more: called whenever progress is shown; returns what else there is to say.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        done: float = 0,
        unit: str | None = "steps",
        more: Callable[[], str] = str,
    ) -> None:
        self.what, self.total, self.done, self.unit, self.more = what, total, done, unit, more
        self.is_bar = sys.stdout.isatty()
        self._first = done
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._begin = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        self._begin = self._shown = time.monotonic()
        if self.is_bar:
            columns = TextColumn(self.what, markup=False), BarColumn(), TextColumn("{task.fields[state]}", markup=False)
            self._bar = Progress(*columns, console=console(), refresh_per_second=1 / REFRESH_SECONDS)
            begun: dict[str, Any] = {"total": self.total, "completed": self.done}
            self._task = self._bar.add_task(self.what, state="", **begun)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._bar is not None:
            if kind is None:
                self.update(self.done, now=True)
            self._bar.stop()
            self._bar = None

    def advance(self, count: float = 1) -> None:
        """Count what has been done since the last call."""
        self.update(self.done + count)

    def update(self, done: float, now: bool = False) -> None:
        """Set what has been done, and show it if that is due, or `now`."""
        self.done, clock = done, time.monotonic()
        if not now and clock - self._shown < (REFRESH_SECONDS if self._bar else LINE_SECONDS):
            return
        state = self._state(clock - self._begin)
        if self._bar is None:
            self.print(f"{self.what}: {state}")
        else:
            self._shown = clock
            self._bar.update(self._task, completed=done, state=state)

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line)
            return
        self._shown = time.monotonic()
        print(line, flush=True)

    def _state(self, seconds: float) -> str:
        share = f"{100 * self.done / self.total:.0f}%" if self.total else ""
        speed = (self.done - self._first) / max(1e-9, seconds)
        if self.unit is None:
            words = [share, self.more()]
        else:
            of = f"/{self.total} {self.unit} ({share})" if share else f" {self.unit}"
            words = [f"{int(self.done)}{of}", self.more(), f"{speed:,.1f} {self.unit}/s"]
        if self.total and speed > 0:
            words.append(f"{_clock((self.total - self.done) / speed)} left")
        return "  ".join(filter(None, words))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
