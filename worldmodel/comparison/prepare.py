"""What `worldmodel compare` plans before anything is trained: data, sizes, runs, and what each of them takes."""

import os
import platform
import shlex
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table

from worldmodel import __version__
from worldmodel.comparison.launch import Launcher, Resources, side_by_side
from worldmodel.comparison.matching import Match, difference, matched, size_of
from worldmodel.comparison.options import CompareCLI, axes_of, seeds_of
from worldmodel.comparison.plan import Variant, plan_runs, read_config, variants
from worldmodel.errors import UserError
from worldmodel.evaluation.selection import default_burn_in
from worldmodel.experiments.world_model import check_gradient


@dataclass(frozen=True)
class Prepared:
    """A comparison that is thought through, before anything of it is on the disk."""

    plan: dict[str, Any]
    config: str  # YAML
    jobs: int
    resources: Resources
    unreached: str | None  # horizons that the test episodes are too short for, in words


def prepare(options: Any, fit: list[str], command: list[str]) -> Prepared:
    """Try the configuration with every value, make the data where it is missing, choose sizes, and plan the runs.

    Raises:
        UserError, SystemExit: for whatever is wrong, before anything is trained.
    """
    out: Path = options.out
    experiment = out.resolve().name
    base = CompareCLI(fit, experiment)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}: it must be at least 1")
    if base.datamodule.task is not None:
        raise UserError(
            "the data is of a sequence task, and compare judges predictions of values: use `worldmodel fit` for each"
            " rule, which ends with the accuracy"
        )
    axes = axes_of(options.rules, options.start, options.vary, base.settings["tbptt"]["start"])
    check_gradient(base.model, axes["start"])
    seeds = seeds_of(options.seeds)
    if "model.hidden_dim" in axes and options.match != "hidden":
        raise UserError(f"--vary model.hidden_dim changes what --match {options.match} holds equal: use --match hidden")
    arguments = _arguments(fit, base, axes, experiment)
    missed = unreached(base)
    resources, jobs = _resources(base, options.jobs, read_config(out).get("threads"), options.launcher)
    base.settings["threads"] = resources.threads
    chosen = variants(axes)
    sizes, reference = _sizes(chosen, arguments, dict(base.model.hparams), options.match)
    steps = base.datamodule.steps
    plan = {
        "runs": plan_runs(out, chosen, [row["hidden_dim"] for row in sizes], seeds, base.settings["experiment"]),
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
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Prepared(plan, base.dump(), jobs, resources, missed)


def print_sizes(plan: dict[str, Any]) -> None:
    """The table of what was matched, and how much is to be done."""
    console = Console(soft_wrap=True, highlight=False)
    what = "flops a step" if plan["match"] == "flops" else "parameters"
    reference = plan["reference"]
    how = "not matched, equal hidden_dim" if plan["match"] == "hidden" else f"matched by {what}"
    title = f"sizes, {how}; the configuration: {reference['rule']}, hidden_dim {reference['hidden_dim']}"
    table = Table(title=title, title_justify="left")
    table.add_column("variant", min_width=max(len(row["variant"]) for row in plan["sizes"]))
    for heading in ("hidden_dim", "parameters", "recurrent", "flops/step", "difference"):
        table.add_column(heading, justify="right")
    for row in plan["sizes"]:
        numbers = (row[name] for name in ("hidden_dim", "parameters", "recurrence_parameters", "flops"))
        table.add_row(row["variant"], *(f"{number:,}" for number in numbers), f"{row['difference_percent']:+.2f}%")
    console.print(table)
    runs, seeds = len(plan["runs"]), ", ".join(map(str, plan["seeds"]))
    console.print(f"{runs} runs: {len(plan['sizes'])} variants, seeds {seeds}; {shlex.join(plan['command'])}")
    console.file.flush()


def _arguments(
    fit: list[str], base: CompareCLI, axes: dict[str, list[str]], experiment: str
) -> dict[tuple[str, ...], dict[str, Any]]:
    """WorldModel's arguments for each combination of the values of --vary; all are tried by that."""
    varied = {key: values for key, values in axes.items() if key not in ("rule", "start")}
    if not varied:
        return {(): dict(base.model.hparams)}
    found = {}
    for values in product(*varied.values()):
        words = [f"--{key}={value}" for key, value in zip(varied, values, strict=True)]
        found[values] = dict(CompareCLI([*fit, *words], experiment).model.hparams)
    return found


def _sizes(
    chosen: list[Variant], arguments: dict[tuple[str, ...], dict[str, Any]], configured: dict[str, Any], match: Match
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each variant, and one for the configuration as it stands, which they are matched to."""
    reference = size_of(configured)
    rows = []
    for variant in chosen:
        rule, _, *values = variant.axes.values()
        size = matched(variant.name, arguments[tuple(values)] | {"rule": rule}, reference, match)
        percent = 100 * difference(size, reference, match)
        rows.append({"variant": variant.name, **asdict(size), "difference_percent": percent})
    return rows, {"rule": configured["rule"], **asdict(reference)}


def unreached(base: CompareCLI) -> str | None:
    """Names the horizons that no test episode is long enough for; a UserError if that is all of them.

    The test episodes are those that `comparison.measure` takes.
    """
    data, rollout = base.datamodule, base.rollout
    split = "test" if len(data.splits["test"]) else "val"
    whole = data.splits[split]
    episodes = whole.select(range(min(rollout.max_episodes, len(whole))))
    longest = int(episodes.num_frames.max()) - 1
    if longest < data.steps:
        raise UserError(
            f"the {split} episodes are too short to judge by: the longest has {longest} steps, data.steps is"
            f" {data.steps}; lower data.steps, or take longer episodes, or some for the test alone (data.test_path)"
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
    """What a run takes, and how many run side by side.

    Where the configuration names no number of threads, the cores are shared out once: a comparison that goes on keeps
    it, since another number may round differently.
    """
    cores, gpus = _cores(), base.gpus()
    threads = base.settings["threads"] or threads_before or max(1, cores // ((jobs or 1) * base.processes()))
    each = min(cores, threads * base.processes())
    resources = Resources(threads, each, gpus)
    if launcher == "ray" and jobs is not None:  # the cluster's GPUs need not be here
        return resources, jobs
    return resources, side_by_side(jobs, resources, cores, torch.cuda.device_count())


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _data(base: CompareCLI) -> dict[str, Any]:
    """What the runs are trained and judged on; collects and reads it, so that no two runs do so at once."""
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
        "platform": f"{platform.system()} {platform.machine()}, {_cores()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
