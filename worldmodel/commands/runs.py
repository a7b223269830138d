"""`worldmodel runs`: the runs below a folder and their results, the newest last; or one of them."""

import math
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path

from rich.table import Table

from worldmodel.arguments import Parser
from worldmodel.errors import UserError, at_least, nearest
from worldmodel.runs.display import console
from worldmodel.runs.listing import Run, find_runs

USUAL = ("val/loss", "rollout/nmse@{steps}", "rollout/nmse@{far}", "val/return", "val/accuracy")


def main(argv: list[str]) -> None:
    """Print a table of the runs, or all metrics of the run whose folder is named."""
    options = _parser().parse_args(argv)
    at_least(1, "--", last=options.last)
    runs = find_runs(options.folder)
    if len(runs) == 1 and runs[0].folder == options.folder:
        _show(runs[0])
        return
    chosen = [run for run in runs if all(word in f"{run.folder} {run.rule}" for word in options.filter)]
    if not chosen:
        which = f" with {' and '.join(options.filter)}" if options.filter else ""
        print(f"no runs{which} in {options.folder}: worldmodel fit --config quickstart makes one")
        return
    metrics = _metrics(options, chosen)
    if options.sort:
        chosen.sort(key=lambda run: run.metrics.get(options.sort, math.inf))
    _print(chosen[-options.last :] if options.last else chosen, metrics, options.folder)


def _parser() -> Parser:
    parser = Parser("worldmodel runs", "List the runs below a folder, the newest last; of one run, show all metrics.")
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="A folder of runs, or one run.")
    add("--filter", action="append", default=[], metavar="WORD", help="Only runs whose path or rule holds WORD.")
    add("--metrics", metavar="A,B", help="Metrics to show, by their names in metrics.csv.")
    add("--sort", metavar="METRIC", help="Sort by this metric, the lowest first.")
    add("--last", type=int, metavar="N", help="Only the last N of them.")
    return parser


def _metrics(options: Namespace, runs: list[Run]) -> list[str]:
    """The names of the columns; a UserError for one that no run has logged."""
    logged = sorted({name for run in runs for name in run.metrics})
    asked = options.metrics.split(",") if options.metrics else []
    for name in [*asked, *([options.sort] if options.sort else [])]:
        if name not in logged:
            raise UserError(f"no run has logged {name}: {nearest(name, logged)}")
    if asked:
        return asked
    usual = [
        name.format(steps=run.horizon, far=10 * run.horizon) if run.horizon else name for name in USUAL for run in runs
    ]
    shown = [name for name in dict.fromkeys(usual) if name in logged]
    return shown if options.sort in (None, *shown) else [*shown, options.sort]


def _print(runs: list[Run], metrics: list[str], folder: Path) -> None:
    table = Table()
    for title in ("run", "rule"):
        table.add_column(title, overflow="fold")
    for title in ("step", *metrics, "last change"):
        table.add_column(title, justify="right")
    for run in runs:
        numbers = ["" if run.metrics.get(name) is None else f"{run.metrics[name]:.4g}" for name in metrics]
        steps = "" if run.steps is None else f"{run.steps:,}"
        table.add_row(str(run.folder.relative_to(folder)), run.rule, steps, *numbers, _when(run))
    console(None if sys.stdout.isatty() else 160).print(table)


def _show(run: Run) -> None:
    output = console()
    output.print(f"{run.folder}: {run.rule or 'no rule'}, last changed {_when(run)}")
    width = max(map(len, run.metrics), default=0)
    for name, value in sorted(run.metrics.items()):
        output.print(f"  {name:{width}}  {value:.6g}")
    output.print(f"evaluate it: worldmodel test --ckpt {run.folder}")


def _when(run: Run) -> str:
    return datetime.fromtimestamp(run.time).isoformat(" ", "minutes")
