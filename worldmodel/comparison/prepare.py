"""The options of `worldmodel compare`, and everything that is checked and decided before the first run trains."""

import argparse
import platform
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from rich.table import Table

from worldmodel import __version__
from worldmodel.arguments import Parser
from worldmodel.comparison.design import MATCHES, axes_of, runs_of, seeds_of, sizes_of, variants_of
from worldmodel.comparison.folder import read_config, read_design
from worldmodel.comparison.launch import LAUNCHERS, Launcher, Resources, side_by_side
from worldmodel.comparison.tune import check_size, check_tuning, commands, plan, planned_steps
from worldmodel.comparison.tuning import Range, Tuning
from worldmodel.errors import UserError, at_least
from worldmodel.evaluation.selection import RolloutOptions, default_burn_in
from worldmodel.experiments.config import ConfigCLI
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.world_model import TrainingCLI, TrainingParser, check_gradient
from worldmodel.modules.world_model import WorldModel
from worldmodel.parts import digests, names_in
from worldmodel.rules import RULES
from worldmodel.runs.cluster import own_cores
from worldmodel.runs.display import console

TRIALS = 8  # of a tuning, unless --trials says otherwise
NOT_HERE = {
    "--seed_everything": "choose a comparison's seeds with --seeds",
    "--run_dir": "choose a comparison's folder with --out",
    "--ckpt_path": "a comparison trains every run from scratch",
    "--trainer.fast_dev_run": "it trains too little to judge; try the configuration with fit",
    "--init_from": "a comparison trains every run from scratch",
}


def parser() -> Parser:
    """The options of `compare` that `fit` does not have."""
    parser = Parser("worldmodel compare", "Train update rules on the same data and budget, and judge them.")
    parser.formatter_class = argparse.HelpFormatter
    parser.epilog = (
        "Options of `worldmodel fit`, such as --trainer.max_epochs 3, apply to all runs. Repeat the command to"
        " continue an interrupted comparison; rules, starts, seeds and values may be added."
    )
    add = parser.add_argument
    add("--config", action="append", metavar="CONF", help="Configuration that all runs share.")
    add("--out", type=Path, required=True, metavar="DIR", help="Folder of the comparison.")
    add(
        "--rules",
        default=",".join(RULES),
        metavar="A,B",
        help="Update rules to compare, of your own too: file.py:name. Default: all (%(default)s).",
    )
    add("--seeds", default="0,1,2", metavar="N,N", help="Seeds of each variant. Default: %(default)s.")
    add("--start", metavar="carry,zero", help="State at a segment's start. Default: tbptt.start of the configuration.")
    add("--vary", action="append", default=[], metavar="KEY=A,B", help="Option to vary too: model.layers=1,2.")
    add(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=RANGE",
        help="Option to tune for each rule: KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B, by checkpoint_monitor.",
    )
    add("--trials", type=int, metavar="N", help="Values that --tune tries for each rule. Default: 8.")
    add("--match", choices=MATCHES, default="params", help="What hidden sizes make equal. Default: %(default)s.")
    add("--launcher", choices=LAUNCHERS, default="local", help="Processes or a Ray cluster. Default: %(default)s.")
    add("--jobs", type=int, metavar="N", help="Runs side by side. Default: cores / threads, or the number of GPUs.")
    add("--report_only", action="store_true", help="Judge the finished runs in --out, and train nothing.")
    return parser


class CompareParser(TrainingParser):
    """Suggests options of `compare` too."""

    def _keys(self) -> list[str]:
        return [name for name in parser()._option_string_actions if name.startswith("--")] + super()._keys()


class CompareCLI(ConfigCLI, TrainingCLI):
    """The configuration that all runs share.

    Args:
        argv: of `fit`.
        experiment: groups the runs, if the configuration names no experiment.
    """

    command, not_here, parses = "compare", NOT_HERE, CompareParser

    def __init__(self, argv: list[str], experiment: str) -> None:
        self._experiment = experiment
        super().__init__(argv)

    def before_instantiate_classes(self) -> None:
        if self.settings["experiment"] is None:
            self.settings["experiment"] = self._experiment
        super().before_instantiate_classes()

    @property
    def rollout(self) -> RolloutOptions:
        """How far, from where and on how many episodes runs are evaluated."""
        return self._get(self.config_init, "rollout").options


class CheckedCLI(CompareCLI):
    """As far as no data is needed, so that a mistake is reported before any is collected."""

    def instantiate_classes(self) -> None:
        """Nothing."""


def check_report_only(argv: list[str]) -> None:
    """Raise UserError for options that --report_only does not take, or that no command has."""
    taken = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    taken.add_argument("--report_only", action="store_true")
    taken.add_argument("--out")
    if rest := taken.parse_known_args(argv)[1]:
        fit = ["fit", "--data.path", "none", *parser().parse_known_args(argv)[1]]
        with training_errors(fit):
            CheckedCLI(fit, "none")  # refuses what no command has
        raise UserError(f"--report_only trains nothing and takes only --out: leave out {' '.join(rest)}")


@dataclass(frozen=True)
class Prepared:
    """A checked comparison, before any of it is on disk."""

    design: dict[str, Any]
    config: str  # YAML
    defaults: dict[str, Any]  # of the configuration
    jobs: int
    resources: Resources
    unreached: str | None  # horizons that the test episodes are too short for, in words


def prepare(options: Any, fit: list[str], command: list[str]) -> Prepared:
    """Try the configuration with every value, collect missing data, choose sizes, and list the runs.

    Args:
        options: of `compare`.
        fit: arguments of `fit` that all runs share.
        command: of the user, for the record.

    Raises:
        UserError, SystemExit: for any mistake, before anything is trained.
    """
    out: Path = options.out
    experiment = out.resolve().name
    at_least(1, "--", jobs=options.jobs)
    axes, seeds, ranges = _checked(options, fit, experiment)
    base = CompareCLI(fit, experiment)
    if base.datamodule.task is not None:
        raise UserError(
            "the data is a sequence task, and compare judges predictions of values: run `worldmodel fit` for each"
            " rule, which reports the accuracy"
        )
    arguments = _arguments(fit, base, axes, experiment)
    missed = unreached(base)
    resources, jobs = _resources(base, options.jobs, read_config(out).get("threads"), options.launcher)
    base.settings["threads"] = resources.threads
    variants = variants_of(axes)
    sizes, reference = sizes_of(variants, arguments, dict(base.model.hparams), options.match)
    steps, hidden_dims = base.datamodule.steps, [row["hidden_dim"] for row in sizes]
    design: dict[str, Any] = {
        "runs": runs_of(out, variants, hidden_dims, seeds, base.settings["experiment"]),
        "axes": axes,
        "seeds": seeds,
        "steps": steps,
        "horizons": [multiple * steps for multiple in base.rollout.multiples],
        "match": options.match,
        "reference": reference,
        "sizes": sizes,
        "command": command,
        "versions": _versions(),
        "data": _data(base),
        "parts": digests([*axes["rule"], *names_in(yaml.safe_load(config := base.dump()))]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if ranges:
        length = planned_steps(base.trainer, len(base.datamodule.training_segments()))
        before = (read_design(out) or {}).get("tuning")
        tuning = plan(options.tune, options.trials or TRIALS, ranges, base.settings, length, before)
        design["tuning"] = {**tuning.plain(), "commands": commands(out, variants, hidden_dims)}
    return Prepared(design, config, base.defaults(), jobs, resources, missed)


def _checked(options: Any, fit: list[str], experiment: str) -> tuple[dict[str, list[str]], list[int], list[Range]]:
    """The axes, the seeds and the ranges, once everything that needs no data was checked, every rule and value too."""
    settings = CheckedCLI(fit, experiment).settings
    axes = axes_of(options.rules, options.start, options.vary, settings["tbptt"]["start"])
    seeds = seeds_of(options.seeds)
    if "model.hidden_dim" in axes and options.match != "hidden":
        raise UserError(f"--vary model.hidden_dim changes what --match {options.match} holds equal: use --match hidden")
    for rule in axes["rule"]:
        check_gradient(WorldModel.check({**settings["model"].as_dict(), "rule": rule}), axes["start"])
    for words in _combinations(axes).values():
        CheckedCLI([*fit, *words], experiment)
    ranges = check_tuning(options.tune, options.trials, axes, seeds, settings)
    for each in ranges:
        for value in each.ends:
            tried = CheckedCLI([*fit, f"--{each.key}={value}"], experiment).settings
            check_size(each.key, tried["model"].as_dict(), settings["model"].as_dict())
    return axes, seeds, ranges


def _combinations(axes: dict[str, list[str]]) -> dict[tuple[str, ...], list[str]]:
    """Each combination of the values of --vary, as values and as options of `fit`."""
    varied = {key: values for key, values in axes.items() if key not in ("rule", "start")}
    return {
        values: [f"--{key}={value}" for key, value in zip(varied, values, strict=True)]
        for values in product(*varied.values())
    }


def _arguments(
    fit: list[str], base: CompareCLI, axes: dict[str, list[str]], experiment: str
) -> dict[tuple[str, ...], dict[str, Any]]:
    """WorldModel's arguments for each combination of the values of --vary."""
    return {
        values: dict((CompareCLI([*fit, *words], experiment) if words else base).model.hparams)
        for values, words in _combinations(axes).items()
    }


def unreached(base: CompareCLI) -> str | None:
    """The horizons that no test episode is long enough for, in words; a UserError if that is all of them.

    The test episodes are those that `comparison.measure` takes.
    """
    data, rollout = base.datamodule, base.rollout
    split = "test" if len(data.splits["test"]) else "val"
    whole = data.splits[split]
    episodes = rollout.first_episodes(whole)
    longest = int(episodes.num_frames.max()) - 1
    if longest < data.steps:
        raise UserError(
            f"the {split} episodes are too short to judge by: the longest has {longest} steps, data.steps is"
            f" {data.steps}; lower data.steps, or use longer episodes, at least for the test (data.test_path)"
        )
    burn_in = default_burn_in(episodes, data.steps) if rollout.burn_in is None else rollout.burn_in
    horizons = [multiple * data.steps for multiple in rollout.multiples]
    beyond = {
        loop: [str(horizon) for horizon in horizons if horizon > reach]
        for loop, reach in (("closed", longest), ("open", longest - burn_in))
    }
    words = [f"{', '.join(names)} in {loop} loop" for loop, names in beyond.items() if names]
    return f"the longest {split} episode has {longest} steps: no errors at {'; '.join(words)}" if words else None


def _resources(
    base: CompareCLI, jobs: int | None, threads_before: int | None, launcher: Launcher
) -> tuple[Resources, int]:
    """The resources of a run, and how many run side by side.

    Without a number of threads in the configuration, the cores are divided once: a comparison that is continued keeps
    that number, since another one may round differently.
    """
    cores, gpus = own_cores(), base.gpus()
    threads = base.settings["threads"] or threads_before or max(1, cores // ((jobs or 1) * base.processes()))
    resources = Resources(threads, min(cores, threads * base.processes()), gpus)
    if launcher == "ray" and jobs is not None:  # the cluster's GPUs need not be on this machine
        return resources, jobs
    return resources, side_by_side(jobs, resources, cores, torch.cuda.device_count())


def _data(base: CompareCLI) -> dict[str, Any]:
    """The data of all runs; it is collected and read now, so that no two runs do so at once."""
    data = base.datamodule
    return {
        "env_id": data.env_id,
        "fingerprint": data.source.fingerprint[:12],
        "test_fingerprint": data.test_source.fingerprint[:12],
        "splits": {
            name: {"episodes": len(episodes), "steps": episodes.num_transitions}
            for name, episodes in data.splits.items()
        },
    }


def _versions() -> dict[str, Any]:
    return {
        "worldmodel": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {own_cores()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def print_sizes(design: dict[str, Any]) -> None:
    """Print the table of matched sizes, and the number of runs."""
    output = console()
    unit = "flops per step" if design["match"] == "flops" else "parameters"
    reference = design["reference"]
    how = "not matched, equal hidden_dim" if design["match"] == "hidden" else f"matched by {unit}"
    title = f"sizes, {how}; the configuration: {reference['rule']}, hidden_dim {reference['hidden_dim']}"
    table = Table(title=title, title_justify="left")
    table.add_column("variant", min_width=max(len(row["variant"]) for row in design["sizes"]))
    for heading in ("hidden_dim", "parameters", "recurrent", "flops/step", "difference"):
        table.add_column(heading, justify="right")
    for row in design["sizes"]:
        numbers = (row[name] for name in ("hidden_dim", "parameters", "recurrence_parameters", "flops"))
        table.add_row(row["variant"], *(f"{number:,}" for number in numbers), f"{row['difference_percent']:+.2f}%")
    output.print(table)
    runs, seeds = len(design["runs"]), ", ".join(map(str, design["seeds"]))
    output.print(f"{runs} runs: {len(design['sizes'])} variants, seeds {seeds}; {shlex.join(design['command'])}")
    if "tuning" in design:
        tuning = Tuning.read(design["tuning"])
        output.print(f"before, for each variant: {tuning.budget()} over {'; '.join(map(str, tuning.ranges))}")
    output.file.flush()
