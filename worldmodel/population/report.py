"""What a population shows: its progress, and at its end a picture, a table and a copy of the best member's run."""

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Self

from matplotlib.figure import Figure
from rich.table import Table

from worldmodel.callbacks.exchange import RATIO, Report
from worldmodel.evaluation.figures import save
from worldmodel.population.design import Population
from worldmodel.population.folder import CONFIG, LINEAGE, REPORTS, Exploit, Lineage
from worldmodel.runs.display import Display, console
from worldmodel.runs.folder import LOCK, OWNER

PICTURE, BEST = "population.png", "best"
NOT_COPIED = (LOCK, OWNER, "wandb", "skipped", "last-*")  # of a run, into best/
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#999999")  # Okabe-Ito


class PopulationProgress:
    """Shows the steps of all members, and a line for each exchange, as a context manager.

    Args:
        population: that trains.
        lineage: of the population.
        stop_if_asked: called at each report.
    """

    def __init__(self, population: Population, lineage: Lineage, stop_if_asked: Callable[[], None]) -> None:
        self._population, self._lineage, self._stop_if_asked = population, lineage, stop_if_asked
        self._display = Display("evolving", population.size * population.last_step, self._reached())

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def report(self, member: int, report: Report) -> None:
        """A member has reported."""
        self._stop_if_asked()
        self._display.update(self._reached())
        if report.step == self._population.last_step:
            self._display.print(f"member {member} is finished: {self._population.metric} {report.score:.4g}")

    def exchange(self, step: int, exploits: list[Exploit]) -> None:
        """All members have reported this step, and the exploits are decided."""
        scores = {member: of.score for (at, member), of in self._lineage.reports.items() if at == step}
        order = sorted(scores, key=lambda member: self._population.sign * scores[member])
        self._display.print(
            f"step {step}/{self._population.last_step}  {self._population.metric}: best {scores[order[0]]:.4g}"
            f" (member {order[0]}), worst {scores[order[-1]]:.4g}"
        )
        for exploit in exploits:
            values = [f"{key} {exploit.before[key]:.4g} -> {value:.4g}" for key, value in exploit.after.items()]
            self._display.print(f"  member {exploit.member} copies member {exploit.donor}: {', '.join(values)}")

    def _reached(self) -> int:
        return sum(report.step for report in self._lineage.last().values())


def conclude(population: Population, lineage: Lineage) -> None:
    """Copy the best member's run to best/, draw the picture, and print a table."""
    out, metric, last = population.out, population.metric, lineage.last()
    order = sorted(last, key=lambda member: population.sign * last[member].score)
    _copy(population.member(order[0]), out / BEST)
    log = {m.key for m in population.mutations if m.log} | ({metric} if population.mode == "min" else set())
    title = f"{out.name}: {population.size} members, {len(lineage.exploits)} exploits"
    save(population_figure(lineage, metric, title, frozenset(log)), out / PICTURE)
    output = console(None if sys.stdout.isatty() else 120)
    output.print(_table(lineage, order, metric))
    ancestors = "".join(f", from member {e.donor} at step {e.step}" for e in lineage.ancestors(order[0]))
    cost = _cost(population)
    output.print(f"{len(lineage.exploits)} exploits{cost}; the best is member {order[0]}{ancestors}")
    output.print(f"files: {CONFIG}, {REPORTS}, {LINEAGE}, {PICTURE}, member-0/ ...")
    output.print(f"best: {out / BEST}")


def _table(lineage: Lineage, order: list[int], metric: str) -> Table:
    last = lineage.last()
    keys = list(last[order[0]].hyperparameters)
    table = Table(title="the population at its end, the best first", title_justify="left")
    for heading in ("member", metric, "copied", "was copied", *keys):
        table.add_column(heading, justify="right")
    for member in order:
        copied = sum(exploit.member == member for exploit in lineage.exploits)
        was_copied = sum(exploit.donor == member for exploit in lineage.exploits)
        values = [f"{last[member].hyperparameters[key]:.4g}" for key in keys]
        table.add_row(str(member), f"{last[member].score:.5g}", str(copied), str(was_copied), *values)
    return table


def _cost(population: Population) -> str:
    """What it costs to carry states through exploits, in words."""
    ratios: list[float] = []
    for member in range(population.size):
        with (population.member(member) / "metrics.csv").open(newline="") as file:
            ratios += [float(row[RATIO]) for row in csv.DictReader(file) if row.get(RATIO)]
    return f" (loss of the first batch after one / of the second: median {median(ratios):.3f})" if ratios else ""


def _copy(run: Path, place: Path) -> None:
    partial_copy = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    shutil.copytree(run, partial_copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    shutil.rmtree(place, ignore_errors=True)
    partial_copy.rename(place)


def population_figure(lineage: Lineage, metric: str, title: str, log: frozenset[str] = frozenset()) -> Figure:
    """Scores and hyperparameters against steps, a panel each, with exploits as arrows from donor to copy.

    Args:
        lineage: with reports.
        metric: the name of the score.
        title: of the figure.
        log: names among score and hyperparameters whose axis is logarithmic.
    """
    names = [metric, *lineage.of(next(iter(lineage.last())))[0].hyperparameters]
    figure = Figure(figsize=(9, 2.6 * len(names) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels: Any = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        (_draw_scores if axes is panels[0] else _draw_hyperparameter)(axes, lineage, name)
        axes.set_ylabel(name)
        if name in log:
            axes.set_yscale("log")
    panels[-1].set_xlabel("optimizer steps")
    panels[0].legend(fontsize=8, ncols=4)
    return figure


def _draw_scores(axes: Any, lineage: Lineage, metric: str) -> None:
    for member in lineage.last():
        reports = lineage.of(member)
        steps, scores = [report.step for report in reports], [report.score for report in reports]
        axes.plot(steps, scores, ".-", color=_colour(member), label=f"member {member}", lw=1.2)
    for exploit in lineage.exploits:
        _arrow(axes, exploit, exploit.donor_score, exploit.score)


def _draw_hyperparameter(axes: Any, lineage: Lineage, key: str) -> None:
    """A report's hyperparameters are those of the steps before it."""
    for member in lineage.last():
        reports = lineage.of(member)
        edges, values = [0, *(report.step for report in reports)], [report.hyperparameters[key] for report in reports]
        axes.stairs(values, edges, baseline=None, color=_colour(member), lw=1.5)
    for exploit in lineage.exploits:
        donor = lineage.reports[exploit.step, exploit.donor]
        _arrow(axes, exploit, donor.hyperparameters[key], exploit.after[key])


def _colour(member: int) -> str:
    return COLOURS[member % len(COLOURS)]


def _arrow(axes: Any, exploit: Exploit, start: float, end: float) -> None:
    style: dict[str, Any] = {"arrowstyle": "->", "color": _colour(exploit.donor), "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(exploit.step, end), xytext=(exploit.step, start), arrowprops=style)
