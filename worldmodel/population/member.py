"""A member of a population, in a process of its own: an ordinary `fit`, which exchanges weights with the others."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback

from worldmodel.callbacks.checkpoints import LastCheckpoint
from worldmodel.callbacks.exchange import Exchange, Report, Swap, report_of
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.experiments.policies import PolicyCLI
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.population.board import Board
from worldmodel.population.engine import member_folder, tell
from worldmodel.runs.checkpoint import NAME

NEVER = 1_000_000_000


@dataclass(frozen=True)
class Membership:
    """What all members know."""

    cwd: Path  # relative paths of the configuration begin here
    folder: Path  # of the population, absolute
    config: Path  # of the fit
    interval: int
    last_step: int
    metric: str
    worst: float  # score
    seed: int
    data_seed: int
    threads: int
    keep: int  # checkpoints
    trains: str  # of MEMBERS


class MemberCLI(ExperimentCLI):
    """`fit` with an Exchange; beside the CLI of what is trained among the bases.

    Updates that are not finite never end it: the population takes care of a bad member.
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


class WorldModelMember(MemberCLI, TrainingCLI): ...


class PolicyMember(MemberCLI, PolicyCLI): ...


MEMBERS: dict[str, type[MemberCLI]] = {"world_model": WorldModelMember, "policy": PolicyMember}


def train(shared: Membership, member: int, start: Mapping[str, float]) -> None:
    """Train a member from where its folder is to the last step; what it prints goes to its log.

    Args:
        shared: of the population.
        member: its number.
        start: its hyperparameters, where it has no checkpoint yet.
    """
    os.chdir(shared.cwd)
    folder = member_folder(shared.folder, member)
    _log_to(folder.with_suffix(".log"))
    try:
        _train(shared, member, folder, start)
    except BaseException:  # Ray takes it away; the log is where it is looked for
        traceback.print_exc()
        raise


def _train(shared: Membership, member: int, folder: Path, start: Mapping[str, float]) -> None:
    last = folder / "checkpoints" / NAME
    report = report_of(last) if last.is_file() else None
    if report is None or report.step < shared.last_step:
        values = dict(start if report is None else report.hyperparameters)
        report = _fit(shared, member, folder, values)
    tell(report.step, report.score, report.hyperparameters)


def _fit(shared: Membership, member: int, folder: Path, values: Mapping[str, float]) -> Report:
    board = Board(shared.folder)

    def ask(report: Report) -> Swap | None:
        _keep_in_config(folder / "config.yaml", report.hyperparameters)
        if board.read(report.step) is None:
            tell(report.step, report.score, report.hyperparameters)
        mine = [exploit for exploit in board.wait(report.step) if exploit.member == member]
        if not mine:
            return None
        donor = member_folder(shared.folder, mine[0].donor)
        return Swap(_checkpoint_of(donor, report.step), dict(mine[0].after))

    def exchange(last: LastCheckpoint) -> Exchange:
        return Exchange(shared.interval, shared.metric, shared.worst, values, last, ask)

    argv = _argv(shared, member, folder, values)
    name = f"{shared.folder.name}-{member}"
    with training_errors(argv):
        cli = MEMBERS[shared.trains](argv, name, exchange)
    assert cli.exchange.report is not None
    _keep_in_config(folder / "config.yaml", cli.exchange.report.hyperparameters)
    return cli.exchange.report


def _argv(shared: Membership, member: int, folder: Path, values: Mapping[str, float]) -> list[str]:
    """Of the fit. The Exchange alone validates and saves, and the last two checkpoints are of its last two steps: a
    member that copies finds the one that it needs however late it comes."""
    options: dict[str, Any] = {
        "config": shared.config,
        "run_dir": folder,
        "seed_everything": shared.seed + member,
        "data.seed": shared.data_seed + member,
        "threads": shared.threads,
        "checkpoint_every": NEVER,
        "checkpoint_keep": max(2, shared.keep),
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": NEVER,
        **values,
    }
    # --resume at the end: the configuration says no to it
    return ["fit", *(f"--{name}={value}" for name, value in options.items()), "--resume"]


def _checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a run's report at this step: the last one, or the one before, of a run that went on."""
    for path in (folder / "checkpoints" / NAME, folder / "checkpoints" / "last-1.ckpt"):
        if path.is_file() and (report := report_of(path)) is not None and report.step == step:
            return path
    raise UserError(f"{folder} holds no checkpoint of step {step}, which another member is to copy: was it removed?")


def _keep_in_config(path: Path, values: Mapping[str, float]) -> None:
    """config.yaml says what last.ckpt was trained with."""
    config = yaml.safe_load(path.read_text())
    for key, value in values.items():
        group, name = key.split(".")
        config[group][name] = value
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))


def _log_to(path: Path) -> None:
    """All that this process prints."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
