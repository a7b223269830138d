"""How far a comparison is: runs done, failed and running, and the time left of the whole."""

import re
from pathlib import Path
from typing import Any, Self

from worldmodel.comparison.processes import Task
from worldmodel.runs.display import Display

STEP = re.compile(r"^training: (\d+)/(\d+) steps", re.MULTILINE)  # a line of FitProgress


class ComparisonProgress:
    """Shows what becomes of a comparison's runs, or of its trials.

    Args:
        doing: in a word.
        noun: what they are, in the plural.
        done: those that were finished before.
        total: all of them.
    """

    def __init__(self, doing: str, noun: str, done: int, total: int) -> None:
        self.noun, self.done, self.total, self.failed = noun, done, total, 0
        self._steps: dict[str, tuple[int, int]] = {}
        self._display = Display(doing, total, done, unit=None, more=self._state)

    def __enter__(self) -> Self:
        if self.done:
            self._display.print(f"{self.done} of {self.total} {self.noun} are finished already")
        self._display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def end(self, task: Task, reason: str | None) -> None:
        """One has ended, with a result, or without for this reason."""
        if reason is None:
            self.done += 1
            self._display.print(f"done: {task.label} ({self.done} of {self.total})")
        else:
            self.failed += 1
            self._display.print(f"FAILED: {task.label}: {reason} (log: {task.log})")

    def update(self, running: dict[str, Path]) -> None:
        """Show where things stand.

        Args:
            running: the logs of the runs that have started and not ended.
        """
        if not self._display.is_bar:
            for label in running.keys() - self._steps.keys():
                self._display.print(f"started: {label}")
        self._steps = {label: _last_step(path) for label, path in running.items()}
        self._display.update(self.done + self.failed + sum(step / total for step, total in self._steps.values()))

    def _state(self) -> str:
        words = [f"{self.done}/{self.total} {self.noun}"]
        words += [f"{self.failed} failed"] if self.failed else []
        words += [f"{label} {step}/{total}" if step else label for label, (step, total) in self._steps.items()]
        return "  ".join(words)


def _last_step(log: Path) -> tuple[int, int]:
    """The last step in a run's log, and how many the run plans; (0, 1) before the first."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = STEP.findall(file.read().decode(errors="replace"))
    return (int(lines[-1][0]), int(lines[-1][1])) if lines else (0, 1)
