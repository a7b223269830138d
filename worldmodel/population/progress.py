"""How far a population is: one bar on a terminal, and a line an exchange."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from worldmodel.population.lineage import Exploit, Lineage, Told


class PopulationProgress:
    """Members' reports and exchanges.

    Args:
        lineage: of the population.
        population: members.
        last_step: of each.
        metric: as the score is called.
        sign: 1 where the least score is the best, else -1.
        stop_if_asked: called at each report.
    """

    def __init__(
        self,
        lineage: Lineage,
        population: int,
        last_step: int,
        metric: str,
        sign: int,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._lineage, self._population, self._last_step = lineage, population, last_step
        self._metric, self._sign, self._stop_if_asked = metric, sign, stop_if_asked
        self._begin, self._before = time.monotonic(), self._reached()
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            columns = TextColumn("evolving"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._bar.add_task("pbt", total=self._population * self._last_step, completed=self._before)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, report: Told) -> None:
        """A member has reported."""
        self._stop_if_asked()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._reached())
        if report.step == self._last_step:
            self._print(f"member {report.member} is through: {self._metric} {report.score:.4g}")

    def exchange(self, step: int, exploits: list[Exploit]) -> None:
        """All have reported this step, and it was decided who copies whom."""
        told = sorted((t for t in self._lineage.reports if t.step == step), key=lambda t: self._sign * t.score)
        best, worst = told[0], told[-1]
        self._print(
            f"step {step}/{self._last_step}  {self._metric}: best {best.score:.4g} (member {best.member}), worst"
            f" {worst.score:.4g}{self._left()}"
        )
        for exploit in exploits:
            self._print(f"  {describe(exploit)}")

    def _reached(self) -> int:
        return sum(told.step for told in self._lineage.last().values())

    def _left(self) -> str:
        reached, total = self._reached(), self._population * self._last_step
        seconds = (time.monotonic() - self._begin) * (total - reached) / max(1, reached - self._before)
        return f"  about {seconds / 60:.1f} min left"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)
        self._console.file.flush()


def describe(exploit: Exploit) -> str:
    """One line."""
    values = [f"{key} {exploit.before[key]:.4g} -> {value:.4g}" for key, value in exploit.after.items()]
    return f"member {exploit.member} copies member {exploit.donor}: {', '.join(values)}"
