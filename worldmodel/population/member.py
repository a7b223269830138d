"""A member of a population, in a process of its own: an ordinary `fit` that may copy other members' weights."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback

from worldmodel.callbacks.checkpoints import LastCheckpoint
from worldmodel.callbacks.exchange import Exchange, Report, report_of
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.population.design import Population
from worldmodel.population.folder import CONFIG, Board
from worldmodel.population.options import KINDS
from worldmodel.runs.files import NAME

HYPERPARAMETERS = "hyperparameters"  # in a trial's configuration, and in what it reports
NEVER = 1_000_000_000


class MemberCLI(ExperimentCLI):
    """`fit` with an Exchange; beside the CLI of what is trained among the bases.

    Updates that are not finite never end it: the population replaces a bad member.

    Args:
        argv: of the fit.
        name: of the run and its group in W&B.
        exchange: makes the Exchange.
    """

    exchange: Exchange

    def __init__(self, argv: list[str], name: str, exchange: Callable[[LastCheckpoint], Exchange]) -> None:
        self._name, self._exchange = name, exchange
        super().__init__(argv)

    def names(self) -> tuple[str, str]:
        return self._name, self._name

    def callbacks(self, **further: Any) -> list[Callback]:
        return super().callbacks(exchange=self._make_exchange, max_skipped=NEVER, **further)

    def _make_exchange(self, last: LastCheckpoint) -> Exchange:
        self.exchange = self._exchange(last)
        return self.exchange


def train(population: Population, cwd: Path, member: int, start: Mapping[str, float]) -> None:
    """Train a member from its last checkpoint to the last step, reporting to Tune; its output goes to its log.

    Args:
        population: that it belongs to.
        cwd: where relative paths of the configuration start.
        member: its number.
        start: its hyperparameters, if it has no checkpoint yet.
    """
    os.chdir(cwd)
    population = replace(population, out=population.out.resolve())
    _log_to(population.member(member).with_suffix(".log"))
    try:
        last = population.member(member) / "checkpoints" / NAME
        report = report_of(last) if last.is_file() else None
        if report is None or report.step < population.last_step:
            report = _fit(population, member, start if report is None else report.hyperparameters)
        _tell(report)
    except BaseException:  # also printed to the log: Ray keeps it elsewhere
        traceback.print_exc()
        raise


def _fit(population: Population, member: int, values: Mapping[str, float]) -> Report:
    board, folder = Board(population.out), population.member(member)

    def ask(report: Report) -> tuple[Path, Mapping[str, float]] | None:
        _keep_in_config(folder / CONFIG, report.hyperparameters)
        if board.read(report.step) is None:
            _tell(report)
        own = [exploit for exploit in board.wait(report.step) if exploit.member == member]
        return (_checkpoint_of(population.member(own[0].donor), report.step), own[0].after) if own else None

    def exchange(last: LastCheckpoint) -> Exchange:
        worst = float("inf") if population.mode == "min" else float("-inf")
        return Exchange(population.interval, population.metric, worst, values, last, ask)

    argv = _argv(population, member, values)
    with training_errors(argv):
        cli = type("Cli", (MemberCLI, KINDS[population.trains].fit_cli), {})(
            argv, f"{population.out.name}-{member}", exchange
        )
    report = cli.exchange.report
    assert report is not None
    _keep_in_config(folder / CONFIG, report.hyperparameters)
    return report


def _tell(report: Report) -> None:
    """Report to Tune."""
    from ray import tune

    values = dict(report.hyperparameters)
    tune.report({"step": report.step, "score": report.score, HYPERPARAMETERS: values})


def _argv(population: Population, member: int, values: Mapping[str, float]) -> list[str]:
    """Arguments of the fit.

    Only the Exchange validates and saves, and the last two checkpoints are of its last two steps: a member that copies
    finds the one that it needs, however late it comes.
    """
    options: dict[str, Any] = {
        "config": population.out / CONFIG,
        "run_dir": population.member(member),
        "seed_everything": population.seed + member,
        "data.seed": population.data_seed + member,
        "threads": population.threads,
        "checkpoint_every": NEVER,
        "checkpoint_keep": max(2, population.keep),
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": NEVER,
        **values,
    }
    # --resume comes last: the configuration denies it
    return ["fit", *(f"--{name}={value}" for name, value in options.items()), "--resume"]


def _checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a run's report at this step: the last one, or the one before if the run has gone on."""
    for path in (folder / "checkpoints" / NAME, folder / "checkpoints" / "last-1.ckpt"):
        if path.is_file() and (report := report_of(path)) is not None and report.step == step:
            return path
    raise UserError(f"{folder} holds no checkpoint of step {step}, which another member copies: was it removed?")


def _keep_in_config(path: Path, values: Mapping[str, float]) -> None:
    """Keep config.yaml in step with last.ckpt."""
    config = yaml.safe_load(path.read_text())
    for key, value in values.items():
        group, name = key.split(".")
        config[group][name] = value
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))


def _log_to(path: Path) -> None:
    """Append all output of this process to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
