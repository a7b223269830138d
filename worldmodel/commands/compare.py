"""`worldmodel compare`: every rule, start and seed on the same data and budget, then a verdict and a report."""

import gc
import sys
from pathlib import Path

from worldmodel.comparison.folder import CONFIG, damages, finished, load, read_design, write_design
from worldmodel.comparison.launch import launch
from worldmodel.comparison.prepare import NOT_HERE, CompareCLI, check_report_only, parser, prepare, print_sizes
from worldmodel.comparison.results import write_references
from worldmodel.durable import whole_file
from worldmodel.experiments.config import check_options
from worldmodel.experiments.errors import training_errors
from worldmodel.runs.display import console
from worldmodel.runs.folder import RunLock
from worldmodel.runs.signals import interruptible

CONSOLE = console(None if sys.stdout.isatty() else 120)  # a log has no width


def main(argv: list[str]) -> None:
    """Run the command; the exit status is 1 if a run failed."""
    options, rest = parser().parse_known_args(argv)
    out: Path = options.out
    if options.report_only:  # also while runs train: every file is replaced whole
        check_report_only(argv)
        for line in damages(out, (read_design(out) or {"runs": []})["runs"]):
            CONSOLE.print(f"{line}: left out")
        conclude(out)
        return
    check_options("compare", NOT_HERE, rest, bool(options.config))
    read_design(out)
    fit = ["fit", *(word for path in options.config for word in ("--config", path)), *rest]
    with training_errors(fit, "world_model"):
        prepared = prepare(options, fit, ["worldmodel", "compare", *argv])
    gc.collect()  # the data that was read to check it
    with RunLock(out, "--out"):
        if differences := write_design(out, prepared.design, prepared.config, prepared.defaults):
            CONSOLE.print(f"versions differ from the first runs', and may round differently: {'; '.join(differences)}")
        print_sizes(prepared.design)
        if prepared.unreached:
            CONSOLE.print(prepared.unreached)
        runs = prepared.design["runs"]
        for line in damages(out, runs):
            CONSOLE.print(f"{line}: made again")

        def kept() -> str:
            done = sum(finished(out, run) is not None for run in runs)
            return f"{done} of {len(runs)} runs are finished and kept in {out}"

        with interruptible(kept) as stop_if_asked:
            failures = launch(out, runs, options.launcher, prepared.jobs, prepared.resources, stop_if_asked)
            conclude(out)
    if failures:
        raise SystemExit(1)


def conclude(out: Path) -> None:
    """Measure the references unless they exist, judge, write the results, and print the verdict."""
    from worldmodel.comparison.measure import references
    from worldmodel.comparison.report import write_report
    from worldmodel.comparison.tables import markdown, print_verdict
    from worldmodel.comparison.verdict import judge, write_results_csv, write_verdict

    comparison = load(out)
    if not comparison.results:
        CONSOLE.print("no run has finished with a result: there is nothing to judge")
        return
    if not comparison.references:
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
    print_verdict(verdict, comparison, CONSOLE)
    CONSOLE.print(f"report: {out / 'report.html'}")
