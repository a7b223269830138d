"""A population's picture: scores and hyperparameters against steps, exploits as arrows from donor to copy."""

from typing import Any

from matplotlib.figure import Figure

from worldmodel.population.lineage import Lineage

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#999999")  # Okabe-Ito


def population_figure(lineage: Lineage, metric: str, title: str, log: frozenset[str] = frozenset()) -> Figure:
    """One panel for the score, one a hyperparameter.

    Args:
        lineage: with reports.
        metric: as the score is called.
        title: above all.
        log: names among score and hyperparameters whose axis is logarithmic.
    """
    keys = list(lineage.reports[0].hyperparameters)
    figure = Figure(figsize=(9, 2.6 * (1 + len(keys)) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels: Any = figure.subplots(1 + len(keys), 1, sharex=True, squeeze=False)[:, 0]
    _scores(panels[0], lineage, metric)
    for axes, key in zip(panels[1:], keys, strict=True):
        _hyperparameter(axes, lineage, key)
    for axes, name in zip(panels, [metric, *keys], strict=True):
        axes.set_ylabel(name)
        if name in log:
            axes.set_yscale("log")
    panels[-1].set_xlabel("optimizer steps")
    panels[0].legend(fontsize=8, ncols=4)
    return figure


def _colour(member: int) -> str:
    return COLOURS[member % len(COLOURS)]


def _scores(axes: Any, lineage: Lineage, metric: str) -> None:
    for member in lineage.last():
        told = [report for report in lineage.reports if report.member == member]
        steps, scores = [t.step for t in told], [t.score for t in told]
        axes.plot(steps, scores, ".-", color=_colour(member), label=f"member {member}", lw=1.2)
    for exploit in lineage.exploits:
        _arrow(axes, exploit.step, exploit.donor_score, exploit.score, _colour(exploit.donor))


def _hyperparameter(axes: Any, lineage: Lineage, key: str) -> None:
    """A report holds for the steps before it."""
    used = {(t.step, t.member): t.hyperparameters[key] for t in lineage.reports}
    for member in lineage.last():
        told = [report for report in lineage.reports if report.member == member]
        edges, values = [0, *(t.step for t in told)], [t.hyperparameters[key] for t in told]
        axes.stairs(values, edges, baseline=None, color=_colour(member), lw=1.5)
    for exploit in lineage.exploits:
        donors = used[exploit.step, exploit.donor]
        _arrow(axes, exploit.step, donors, exploit.after[key], _colour(exploit.donor))


def _arrow(axes: Any, step: int, start: float, end: float, colour: str) -> None:
    style: dict[str, Any] = {"arrowstyle": "->", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(step, end), xytext=(step, start), arrowprops=style)
