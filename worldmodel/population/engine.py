"""The population on Ray Tune: it starts the members, and its PopulationBasedTraining decides who copies whom.

Tune would end a member's process to give it another's weights, and start it anew. Here members live on, with what they
carry from step to step; they find decisions on the Board (board.py), and checkpoints in each other's folders.
"""

import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from worldmodel.population.board import Board
from worldmodel.population.lineage import Exploit, Lineage, Told
from worldmodel.population.mutations import Mutation

HYPERPARAMETERS = "hyperparameters"  # in a trial's config, and in what it reports
RETRIES = 1  # of a member that dies: it goes on from its own checkpoint


@dataclass(frozen=True)
class Rules:
    """How a population evolves."""

    population: int
    interval: int  # optimizer steps between two exchanges
    last_step: int
    mutations: list[Mutation]
    quantile: float  # of the members, that copy and that are copied
    mode: Literal["min", "max"]
    seed: int


class Listener(Protocol):
    """Hears how it goes."""

    def report(self, report: Told) -> None: ...

    def exchange(self, step: int, exploits: list[Exploit]) -> None: ...


class MemberFailed(Exception):
    """A member has died more often than it is started again.

    Args:
        member: which.
    """

    def __init__(self, member: int) -> None:
        super().__init__(f"member {member} failed")
        self.member = member


def member_folder(folder: Path, member: int) -> Path:
    """The run of a member in a population's folder."""
    return folder / f"member-{member}"


def member_of(trial_id: str) -> int:
    """Tune numbers its trials."""
    return int(trial_id.rsplit("_", 1)[1])


def evolve(
    folder: Path,
    rules: Rules,
    starts: list[dict[str, float]],
    train: Callable[..., None],
    resources: Mapping[str, float],
    lineage: Lineage,
    listener: Listener,
) -> None:
    """Train all members side by side to the last step. Ray must be up.

    Args:
        folder: of the population.
        rules: of it.
        starts: hyperparameters of each member, where it has no checkpoint yet.
        train: a member, by its number and its start: reports with `tell` as often as it finds no decision.
        resources: `cpu` and `gpu` of a member; all must find room at once.
        lineage: of the population so far, which is continued.
        listener: hears of reports and exchanges.

    Raises:
        MemberFailed: if one cannot go on.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is this program's
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the older one can be silent
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(rules.population)
    scratch = folder / ".tune"  # Tune's own records: nothing that is needed again
    shutil.rmtree(scratch, ignore_errors=True)

    warnings.filterwarnings("ignore", "Consider boosting PBT performance")  # nobody is started anew here

    def run(config: dict[str, Any]) -> None:
        train(member_of(tune.get_context().get_trial_id()), config[HYPERPARAMETERS])

    scheduler = Exchanges(folder, rules, lineage, listener)
    tuner = tune.Tuner(
        tune.with_resources(run, dict(resources)),
        param_space={HYPERPARAMETERS: tune.grid_search(starts)},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            storage_path=str(scratch.resolve()),
            name="members",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError:
        if scheduler.failed is None:
            raise
        raise MemberFailed(scheduler.failed) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tell(step: int, score: float, hyperparameters: Mapping[str, float]) -> None:
    """A member reports, in its own process."""
    tune.report({"step": step, "score": score, HYPERPARAMETERS: dict(hyperparameters)})


class Exchanges(PopulationBasedTraining):
    """PopulationBasedTraining of members that live on. It decides when all have reported a step: from their scores, the
    step and the seed alone, so that a population which was killed comes to the same decisions.

    Args:
        folder: of the population.
        rules: of it.
        lineage: is continued, and written.
        listener: hears.
    """

    def __init__(self, folder: Path, rules: Rules, lineage: Lineage, listener: Listener) -> None:
        super().__init__(
            time_attr="step",
            metric="score",
            mode=rules.mode,
            perturbation_interval=rules.interval,
            burn_in_period=Board(folder).last() + rules.interval,  # of a population that goes on: the next exchange
            hyperparam_mutations={HYPERPARAMETERS: {m.key: _domain(m) for m in rules.mutations}},
            quantile_fraction=rules.quantile,
            custom_explore_fn=self._inside,
            log_config=False,
            synch=True,
        )
        self.folder, self.rules, self.lineage, self.listener = folder, rules, lineage, listener
        self.failed: int | None = None
        self._heard: dict[int, dict[int, Told]] = {}  # in this process, by step and member

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        step, member = result["step"], member_of(trial.trial_id)
        values = {m.key: result[f"{HYPERPARAMETERS}/{m.key}"] for m in self.rules.mutations}  # Tune flattens results
        trial.set_config({HYPERPARAMETERS: values})
        told = Told(step, member, result["score"], dict(values))
        self.lineage.hear(told)
        self.listener.report(told)
        self.lineage.write(self.folder)
        if step < self.rules.last_step:
            random.seed(f"{self.rules.seed}, {step}")  # PopulationBasedTraining draws from the global generators
            np.random.seed(random.randrange(2**32))
            members: Any = _Alive(tune_controller, self.folder)
            super().on_trial_result(members, trial, result)
            here = self._heard.setdefault(step, {})
            here[member] = told
            if len(here) == self.rules.population:
                self._publish(step, here, members.copied)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.failed = member_of(trial.trial_id)
        raise MemberFailed(self.failed)  # which Tune wraps in an error of its own

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes down what it was started with, which nobody reads: a terminal cannot be

    def _publish(self, step: int, told: Mapping[int, Told], copied: list[Any]) -> None:
        exploits = []
        for trial in copied:
            member, donor = member_of(trial.trial_id), int(Path(trial.checkpoint.path).name.rsplit("-", 1)[1])
            scores = told[member].score, told[donor].score
            after = dict(trial.config[HYPERPARAMETERS])
            exploits.append(Exploit(step, member, donor, *scores, told[member].hyperparameters, after))
            self.lineage.exploit(exploits[-1])
        self.lineage.write(self.folder)
        Board(self.folder).publish(step, exploits)
        self.listener.exchange(step, exploits)

    def _inside(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config[HYPERPARAMETERS]
        return {HYPERPARAMETERS: {m.key: m.keep(values[m.key]) for m in self.rules.mutations}}


class _Alive:
    """Tune's controller as PopulationBasedTraining asks it, where nobody is paused.

    A member that is good enough to be copied has saved before it reported; one that is to copy is noted.
    """

    def __init__(self, controller: Any, folder: Path) -> None:
        self._folder = folder
        self.get_trials, self.get_live_trials = controller.get_trials, controller.get_live_trials
        self.copied: list[Any] = []

    def _schedule_trial_save(self, trial: Any, result: Any = None) -> tune.Checkpoint:
        return tune.Checkpoint(str(member_folder(self._folder, member_of(trial.trial_id))))

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        self.copied.append(trial)


def _domain(mutation: Mutation) -> Any:
    if mutation.choices:
        return list(mutation.choices)
    return (tune.loguniform if mutation.log else tune.uniform)(mutation.low, mutation.high)
