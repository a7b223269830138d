"""How far a population is: the steps of all members, and a line for each exchange."""

from collections.abc import Callable
from typing import Any, Self

from worldmodel.population.lineage import Exploit, Lineage, Told
from worldmodel.runs.display import Display


class PopulationProgress:
    """Shows members' reports and exchanges.

    Args:
        lineage: of the population.
        population: number of members.
        last_step: of each member.
        metric: the name of the score.
        sign: 1 if the lowest score is the best, else -1.
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
        self._lineage, self._last_step = lineage, last_step
        self._metric, self._sign, self._stop_if_asked = metric, sign, stop_if_asked
        self._display = Display("evolving", population * last_step, self._reached())

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def report(self, report: Told) -> None:
        """A member has reported."""
        self._stop_if_asked()
        self._display.update(self._reached())
        if report.step == self._last_step:
            self._display.print(f"member {report.member} is finished: {self._metric} {report.score:.4g}")

    def exchange(self, step: int, exploits: list[Exploit]) -> None:
        """All have reported this step, and it was decided who copies whom."""
        reports = sorted((r for r in self._lineage.reports if r.step == step), key=lambda r: self._sign * r.score)
        best, worst = reports[0], reports[-1]
        self._display.print(
            f"step {step}/{self._last_step}  {self._metric}: best {best.score:.4g} (member {best.member}), worst"
            f" {worst.score:.4g}"
        )
        for exploit in exploits:
            self._display.print(f"  {describe(exploit)}")

    def _reached(self) -> int:
        return sum(report.step for report in self._lineage.last().values())


def describe(exploit: Exploit) -> str:
    """One line."""
    values = [f"{key} {exploit.before[key]:.4g} -> {value:.4g}" for key, value in exploit.after.items()]
    return f"member {exploit.member} copies member {exploit.donor}: {', '.join(values)}"
