"""`worldmodel pbt`: members train side by side; every so often the worst copy the best, and vary what they copied."""

import csv
import gc
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from worldmodel.durable import read_json, whole_file, write_json
from worldmodel.errors import UserError, failure_reason
from worldmodel.evaluation.figures import save
from worldmodel.experiments.config import check_options, config_differences
from worldmodel.experiments.errors import training_errors
from worldmodel.population.board import Board
from worldmodel.population.figure import population_figure
from worldmodel.population.kinds import KINDS, PopulationCLI
from worldmodel.population.lineage import Lineage, read_reports
from worldmodel.population.mutations import parse, starts
from worldmodel.population.options import NOT_HERE, help_text, kind_of
from worldmodel.population.progress import PopulationProgress
from worldmodel.runs.cluster import ray_cluster, share
from worldmodel.runs.lock import LOCK, OWNER, RunLock
from worldmodel.runs.signals import interruptible

SAID = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)
CONFIG, PLAN, PICTURE, BEST = "config.yaml", "population.json", "population.png", "best"
OVER = 60.0  # seconds that the processes of a population which was killed may take to end
NOT_COPIED = (LOCK, OWNER, "wandb", "skipped", "last-*")


@dataclass(frozen=True)
class Prepared:
    """A population that is thought through, before anything of it is on the disk."""

    out: Path
    config: str  # of the members, YAML
    plan: dict[str, Any]  # all else that makes it what it is
    rules: Any  # population.engine.Rules
    starts: list[dict[str, float]]
    threads: int
    gpus: int  # 1 where members want a GPU
    keep: int
    data_seed: int


def main(argv: list[str]) -> None:
    """Run the command, or go on with it."""
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return
    check_options("pbt", NOT_HERE, argv, any(word.split("=")[0] in ("--config", "-c") for word in argv))
    _check_extra()
    fit = ["fit", *argv]
    with training_errors(fit):
        kind = kind_of(argv)
        prepared = _prepare(kind, KINDS[kind](fit))
    gc.collect()  # the data that was looked at
    with RunLock(prepared.out, "--out"):
        lineage = _begin(prepared)
        if len(_through(lineage, prepared)) < prepared.rules.population:
            with interruptible(lambda: _kept(prepared, lineage)) as stop_if_asked:
                _evolve(prepared, lineage, stop_if_asked)
        else:
            SAID.print(f"the population in {prepared.out} is finished; train anew in another --out")
        conclude(prepared, lineage)


def _check_extra() -> None:
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError("pbt needs Ray Tune: pip install 'worldmodel[pbt]'") from error


def _prepare(kind: str, cli: PopulationCLI) -> Prepared:
    from worldmodel.population.engine import Rules

    interval, last = cli.check_evolution()
    own, population = cli.own(), cli.option("population")
    mutations = parse(cli.option("mutate"), list(own))
    cli.check_score(mutation.key for mutation in mutations)
    seed = cli.settings["seed_everything"]
    rules = Rules(population, interval, last, mutations, cli.option("quantile"), cli.option("mode"), int(seed))
    plan = {name: cli.option(name) for name in ("population", "mutate", "quantile", "metric", "mode")}
    plan |= {"trains": kind, "interval": interval, "data": cli.data()}
    return Prepared(
        cli.out(),
        cli.member_config(),
        plan,
        rules,
        starts(mutations, own, population, rules.seed),
        cli.settings["threads"] or max(1, _cores() // population),
        min(1, cli.gpus()),
        cli.settings["checkpoint_keep"],
        cli.datamodule.seed,
    )


def _begin(prepared: Prepared) -> Lineage:
    """Plan and configuration are on the disk, and nobody trains here; returns what the population has done so far."""
    out, lineage = prepared.out, Lineage()
    if (out / PLAN).is_file():
        was, config = read_json(out / PLAN), yaml.safe_load((out / CONFIG).read_text())
        differences = config_differences(was, prepared.plan)
        differences += config_differences(config, yaml.safe_load(prepared.config))
        if differences:
            raise UserError(
                f"the population in {out} is another one: {'; '.join(differences[:3])}. Choose another --out"
            )
        for report in read_reports(out):
            lineage.hear(report)
        for exploit in Board(out).all():
            lineage.exploit(exploit)
        _wait_for_members(out, prepared.rules.population)
        reached = min((told.step for told in lineage.last().values()), default=0)
        SAID.print(f"going on with the population in {out} from step {reached}")
    elif any(path.name not in (LOCK, OWNER) for path in out.iterdir()):
        raise UserError(f"{out} holds files, and no population: choose another --out")
    write_json(out / PLAN, prepared.plan)
    with whole_file(out / CONFIG) as temporary:
        temporary.write_text(prepared.config)
    return lineage


def _wait_for_members(out: Path, population: int) -> None:
    """Processes of a population whose starter was killed end by themselves, but not at once."""
    for lock in sorted(out.glob(f"member-*/{LOCK}")):
        RunLock(lock.parent, "--out", timeout=OVER).release()


def _evolve(prepared: Prepared, lineage: Lineage, stop_if_asked: Callable[[], None]) -> None:
    rules, out = prepared.rules, prepared.out.resolve()
    with ray_cluster("pbt", max(_cores(), 1), "pbt") as ray:
        from worldmodel.population.engine import MemberFailed, evolve, member_folder
        from worldmodel.population.member import Membership, train

        resources = _resources(ray, prepared)
        SAID.print(
            f"{rules.population} members, {prepared.threads} threads each, {resources['cpu']:.3g} cores"
            + (f" and {resources['gpu']:.3g} GPUs" if "gpu" in resources else "")
            + f" of the cluster; an exchange every {rules.interval} of {rules.last_step} steps"
        )
        worst = float("inf") if rules.mode == "min" else float("-inf")
        shared = Membership(
            Path.cwd(), out, out / CONFIG, rules.interval, rules.last_step, prepared.plan["metric"], worst, rules.seed,
            prepared.data_seed, prepared.threads, prepared.keep, prepared.plan["trains"],
        )  # fmt: skip
        sign = 1 if rules.mode == "min" else -1
        progress = PopulationProgress(lineage, rules.population, rules.last_step, shared.metric, sign, stop_if_asked)
        try:
            with progress:
                evolve(out, rules, prepared.starts, partial(train, shared), resources, lineage, progress)
        except MemberFailed as error:
            log = member_folder(prepared.out, error.member).with_suffix(".log")
            raise UserError(
                f"member {error.member} failed: {failure_reason(1, log)} (log: {log}). The same command goes on from"
                " what was saved"
            ) from error


def _resources(ray: Any, prepared: Prepared) -> dict[str, float]:
    """Of a member, so that all of them run at once, if need be on a part of a core or a GPU each."""
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    population = prepared.rules.population
    found = {"cpu": share((node.get("CPU", 0) for node in nodes), population, prepared.threads)}
    if prepared.gpus:
        gpus = [1.0] * int(sum(node.get("GPU", 0) for node in nodes))
        found["gpu"] = share(gpus, population, prepared.gpus)
    if not all(found.values()):
        raise UserError("the Ray cluster has no cores, or no GPUs where the members are to use some")
    return found


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what it came to -------------------------------------------------------------------------------------------------


def _through(lineage: Lineage, prepared: Prepared) -> list[int]:
    return [member for member, told in lineage.last().items() if told.step == prepared.rules.last_step]


def _kept(prepared: Prepared, lineage: Lineage) -> str:
    last = lineage.last()
    if not last:
        return f"no member of {prepared.out} has come to an exchange yet"
    steps = sorted({told.step for told in last.values()})
    return f"{len(last)} members of step {' and '.join(map(str, steps))} are kept in {prepared.out}"


def conclude(prepared: Prepared, lineage: Lineage) -> None:
    """The best member's run as best/, the picture, and a table."""
    from worldmodel.population.engine import member_folder

    out, metric, last = prepared.out, prepared.plan["metric"], lineage.last()
    sign = 1 if prepared.rules.mode == "min" else -1
    order = sorted(last, key=lambda member: sign * last[member].score)
    best = member_folder(out, order[0])
    _copy(best, out / BEST)
    log = frozenset({m.key for m in prepared.rules.mutations if m.log} | ({metric} if sign == 1 else set()))
    title = f"{out.name}: {prepared.rules.population} members, {len(lineage.exploits)} exploits"
    save(population_figure(lineage, metric, title, log), out / PICTURE)
    SAID.print(_table(lineage, order, metric))
    ancestors = "".join(f", from member {e.donor} at step {e.step}" for e in lineage.ancestors(order[0]))
    SAID.print(f"{len(lineage.exploits)} exploits{_cost(out, order)}; the best is member {order[0]}{ancestors}")
    SAID.print(f"files: {CONFIG}, population.csv, lineage.csv, {PICTURE}, member-0/ ...")
    SAID.print(f"best: {out / BEST}")


def _table(lineage: Lineage, order: list[int], metric: str) -> Table:
    last, keys = lineage.last(), list(lineage.reports[0].hyperparameters)
    table = Table(title="the population at its end, the best first", title_justify="left")
    for heading in ("member", metric, "copied", "was copied", *keys):
        table.add_column(heading, justify="right")
    for member in order:
        copied = sum(exploit.member == member for exploit in lineage.exploits)
        was = sum(exploit.donor == member for exploit in lineage.exploits)
        values = [f"{last[member].hyperparameters[key]:.4g}" for key in keys]
        table.add_row(str(member), f"{last[member].score:.5g}", str(copied), str(was), *values)
    return table


def _cost(out: Path, members: list[int]) -> str:
    """What the states cost that were carried through the swaps, in words."""
    from worldmodel.callbacks.exchange import RATIO
    from worldmodel.population.engine import member_folder

    ratios: list[float] = []
    for member in members:
        with (member_folder(out, member) / "metrics.csv").open(newline="") as file:
            ratios += [float(row[RATIO]) for row in csv.DictReader(file) if row.get(RATIO)]
    return f" (loss of the first batch behind one / of the second: median {median(ratios):.3f})" if ratios else ""


def _copy(run: Path, place: Path) -> None:
    partial_copy = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    shutil.copytree(run, partial_copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    shutil.rmtree(place, ignore_errors=True)
    partial_copy.rename(place)
