"""`worldmodel compare`: every rule, start and seed on the same data and budget, then a verdict and a report."""

import gc
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from worldmodel.comparison.launch import launch
from worldmodel.comparison.options import NOT_HERE, CompareCLI, check_report_only, parser
from worldmodel.comparison.plan import CONFIG, PLAN, check_continues, finished, keep_record, load, read_plan
from worldmodel.comparison.prepare import Prepared, prepare, print_sizes
from worldmodel.comparison.results import write_json, write_references
from worldmodel.durable import whole_file
from worldmodel.experiments.config import check_options
from worldmodel.experiments.errors import training_errors
from worldmodel.runs.folder import RunLock
from worldmodel.runs.signals import interruptible

SAID = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)  # a log has no width


def main(argv: list[str]) -> None:
    """Run the command; the exit status is 1 if a run failed."""
    options, rest = parser().parse_known_args(argv)
    out: Path = options.out
    if options.report_only:  # while runs go on, too: all files are replaced whole
        check_report_only(argv)
        conclude(out)
        return
    check_options("compare", NOT_HERE, rest, bool(options.config))
    read_plan(out)
    fit = ["fit", *(word for path in options.config for word in ("--config", path)), *rest]
    with training_errors(fit):
        prepared = prepare(options, fit, ["worldmodel", "compare", *argv])
    gc.collect()  # the data that was looked at
    with RunLock(out, "--out"):
        _write(out, prepared)
        print_sizes(prepared.plan)
        if prepared.unreached:
            SAID.print(prepared.unreached)
        runs = prepared.plan["runs"]
        with interruptible(lambda: _kept(out, runs)):
            failures = launch(out, runs, options.launcher, prepared.jobs, prepared.resources)
            conclude(out)
    if failures:
        raise SystemExit(1)


def conclude(out: Path) -> None:
    """Measure the references if that is still to be done, judge, write what came out, and print it."""
    from worldmodel.comparison.report import write_report
    from worldmodel.comparison.tables import markdown, print_verdict
    from worldmodel.comparison.verdict import judge, write_results_csv, write_verdict

    comparison = load(out)
    if not comparison.results:
        SAID.print("no run has come to a result: there is nothing to judge")
        return
    if not comparison.references:
        from worldmodel.comparison.measure import references

        fit = ["fit", "--config", str(out / CONFIG)]
        with training_errors(fit):
            base = CompareCLI(fit, out.resolve().name)
            write_references(out, references(base.datamodule, base.rollout))
        comparison = load(out)
    verdict = judge(comparison)
    write_verdict(verdict, out / "verdict.json")
    write_results_csv(comparison, out / "results.csv")
    with whole_file(out / "results.md") as temporary:
        temporary.write_text(markdown(verdict, comparison), encoding="utf-8")
    write_report(comparison, verdict, out / "report.html")
    print_verdict(verdict, comparison, SAID)
    SAID.print(f"report: {out / 'report.html'}")


# --- the folder ------------------------------------------------------------------------------------------------------


def _write(out: Path, prepared: Prepared) -> None:
    """Plan and configuration; a comparison that goes on keeps the record of its beginning."""
    check_continues(out, prepared.plan, yaml.safe_load(prepared.config))
    before = read_plan(out)
    if before is not None and (differences := keep_record(before, prepared.plan)):
        SAID.print(
            f"other versions than those of the first runs, which may round differently: {'; '.join(differences)}"
        )
    write_json(out / PLAN, prepared.plan)
    with whole_file(out / CONFIG) as temporary:
        temporary.write_text(prepared.config)


def _kept(out: Path, runs: list[dict[str, Any]]) -> str:
    done = sum(finished(out, run) is not None for run in runs)
    return f"{done} of {len(runs)} runs are finished and kept in {out}"
