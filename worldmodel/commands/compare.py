"""`worldmodel compare`: every rule, start and seed on the same data and budget, then a verdict and a report."""

import gc
import sys
from pathlib import Path

from worldmodel.comparison.design import with_winners
from worldmodel.comparison.folder import damages, finished, load, read_design, tuned, write_design
from worldmodel.comparison.launch import Engine, launch
from worldmodel.comparison.prepare import NOT_HERE, CompareCLI, check_report_only, parser, prepare, print_sizes
from worldmodel.comparison.results import CONFIG, write_references
from worldmodel.comparison.tune import tune
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
        for line in damages(out, read_design(out) or {"runs": []}):
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
        design = with_winners(prepared.design, tuned(out, prepared.design))
        if differences := write_design(out, design, prepared.config, prepared.defaults):
            CONSOLE.print(f"versions differ from the first runs', and may round differently: {'; '.join(differences)}")
        print_sizes(design)
        if prepared.unreached:
            CONSOLE.print(prepared.unreached)
        for line in damages(out, design):
            CONSOLE.print(f"{line}: made again")

        def kept() -> str:
            done = sum(finished(out, run) is not None for run in design["runs"])
            trials = ", and the trials so far," if "tuning" in design else ""
            return f"{done} of {len(design['runs'])} runs{trials} are finished and kept in {out}"

        with interruptible(kept) as stop_if_asked:
            engine = Engine(options.launcher, prepared.jobs, prepared.resources, stop_if_asked)
            failures = tune(out, design, engine)
            for line in failures:
                CONSOLE.print(f"not tuned: {line}")
            if winners := tuned(out, design):
                design = with_winners(design, winners)
                write_design(out, design, prepared.config, prepared.defaults)
            waiting = [slug for slug, each in winners.items() if each.winner is None]
            failures += launch(out, [run for run in design["runs"] if run["slug"] not in waiting], engine)
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
