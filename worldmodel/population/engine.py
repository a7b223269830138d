"""The population on Ray Tune, which starts the members; its PopulationBasedTraining decides who copies whom.

Tune would restart a member's process to give it another's weights. Here members live on, with the state they carry from
step to step; they find decisions on the Board (folder.py), and checkpoints in each other's folders.
"""

import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from worldmodel.callbacks.exchange import Report
from worldmodel.errors import UserError, failure_reason
from worldmodel.population.design import Mutation, Population
from worldmodel.population.folder import Board, Exploit, Lineage
from worldmodel.population.member import HYPERPARAMETERS, train
from worldmodel.population.report import PopulationProgress
from worldmodel.runs.cluster import own_cores, ray_cluster, share

RETRIES = 1  # of a member that dies: it continues from its own checkpoint


def evolve(population: Population, lineage: Lineage, stop_if_asked: Callable[[], None]) -> None:
    """Train all members side by side to the last step, on the Ray cluster at RAY_ADDRESS or one on this machine.

    Args:
        population: in its folder.
        lineage: of the population so far, which is continued.
        stop_if_asked: called at each report.

    Raises:
        UserError: if the cluster lacks resources, or a member fails.
    """
    with ray_cluster("pbt", own_cores(), "pbt") as ray:
        resources = _resources(ray, population)
        gpus = f" and {resources['gpu']:.3g} GPUs" if "gpu" in resources else ""
        print(
            f"{population.size} members, each with {population.threads} threads on {resources['cpu']:.3g} cores{gpus};"
            f" an exchange every {population.interval} of {population.last_step} steps",
            flush=True,
        )
        with PopulationProgress(population, lineage, stop_if_asked) as progress:
            _tune(population, resources, lineage, progress)


def _resources(ray: Any, population: Population) -> dict[str, float]:
    """Resources of a member, so that all run at once, if need be on part of a core or a GPU each."""
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = {"cpu": share((node.get("CPU", 0) for node in nodes), population.size, population.threads)}
    if population.gpus:
        gpus = [1.0] * int(sum(node.get("GPU", 0) for node in nodes))
        resources["gpu"] = share(gpus, population.size, population.gpus)
    if not all(resources.values()):
        raise UserError("the Ray cluster has no cores, or no GPUs for members that use them")
    return resources


def _tune(
    population: Population, resources: Mapping[str, float], lineage: Lineage, progress: PopulationProgress
) -> None:
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # this program handles Ctrl-C
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the older output can be silenced
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(population.size)
    scratch = population.out / ".tune"  # Tune's own records, which are not needed again
    shutil.rmtree(scratch, ignore_errors=True)
    warnings.filterwarnings("ignore", "Consider boosting PBT performance")  # which is about restarts

    train_member = partial(train, population, Path.cwd())

    def run(config: dict[str, Any]) -> None:
        train_member(member_of(tune.get_context().get_trial_id()), config[HYPERPARAMETERS])

    scheduler = Exchanges(population, lineage, progress)
    tuner = tune.Tuner(
        tune.with_resources(run, dict(resources)),
        param_space={HYPERPARAMETERS: tune.grid_search(population.starts)},
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
        log = population.member(scheduler.failed).with_suffix(".log")
        raise UserError(
            f"member {scheduler.failed} failed: {failure_reason(1, log)} (log: {log}). The same command continues from"
            " the last checkpoints"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def member_of(trial_id: str) -> int:
    """The member's number, which is that of Tune's trial."""
    return int(trial_id.rsplit("_", 1)[1])


class Exchanges(PopulationBasedTraining):
    """PopulationBasedTraining of members that live on.

    It decides once all members have reported a step, from their scores, the step and the seed alone: a population that
    was killed comes to the same decisions.

    Args:
        population: in its folder.
        lineage: is continued and written.
        progress: shows reports and exchanges.
    """

    def __init__(self, population: Population, lineage: Lineage, progress: PopulationProgress) -> None:
        super().__init__(
            time_attr="step",
            metric="score",
            mode=population.mode,
            perturbation_interval=population.interval,
            burn_in_period=Board(population.out).last() + population.interval,  # the next exchange
            hyperparam_mutations={HYPERPARAMETERS: {m.key: _domain(m) for m in population.mutations}},
            quantile_fraction=population.quantile,
            custom_explore_fn=self._keep_in_range,
            log_config=False,
            synch=True,
        )
        self.population, self.lineage, self.progress = population, lineage, progress
        self.failed: int | None = None
        self._reports: dict[int, dict[int, Report]] = {}  # of this process, by step and member

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        step, member = result["step"], member_of(trial.trial_id)
        values = {m.key: result[f"{HYPERPARAMETERS}/{m.key}"] for m in self.population.mutations}  # Tune's flat names
        trial.set_config({HYPERPARAMETERS: values})
        report = Report(step, result["score"], dict(values))
        self.lineage.report(member, report)
        self.progress.report(member, report)
        self.lineage.write(self.population.out)
        if step < self.population.last_step:
            random.seed(f"{self.population.seed}, {step}")  # PopulationBasedTraining draws from the global generators
            np.random.seed(random.randrange(2**32))
            members: Any = _LivingMembers(tune_controller, self.population)
            super().on_trial_result(members, trial, result)
            reports = self._reports.setdefault(step, {})
            reports[member] = report
            if len(reports) == self.population.size:
                self._publish(step, reports, members.copying)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.failed = member_of(trial.trial_id)
        raise RuntimeError(f"member {self.failed} failed")  # which Tune wraps in a TuneError

    def __getstate__(self) -> dict[str, Any]:
        return {}  # for Tune's records, which are not read: the terminal cannot be pickled

    def _publish(self, step: int, reports: Mapping[int, Report], copying: list[Any]) -> None:
        exploits = []
        for trial in copying:
            member, donor = member_of(trial.trial_id), int(Path(trial.checkpoint.path).name.rsplit("-", 1)[1])
            scores = reports[member].score, reports[donor].score
            after = dict(trial.config[HYPERPARAMETERS])
            exploits.append(Exploit(step, member, donor, *scores, reports[member].hyperparameters, after))
            self.lineage.exploit(exploits[-1])
        self.lineage.write(self.population.out)
        Board(self.population.out).publish(step, exploits)
        self.progress.exchange(step, exploits)

    def _keep_in_range(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config[HYPERPARAMETERS]
        return {HYPERPARAMETERS: {m.key: m.keep(values[m.key]) for m in self.population.mutations}}


class _LivingMembers:
    """Tune's controller as PopulationBasedTraining asks it, without pauses.

    A member that is good enough to be copied has saved before it reported; one that is to copy is noted.
    """

    def __init__(self, controller: Any, population: Population) -> None:
        self._population = population
        self.get_trials, self.get_live_trials = controller.get_trials, controller.get_live_trials
        self.copying: list[Any] = []

    def _schedule_trial_save(self, trial: Any, result: Any = None) -> tune.Checkpoint:
        return tune.Checkpoint(str(self._population.member(member_of(trial.trial_id)).resolve()))

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        self.copying.append(trial)


def _domain(mutation: Mutation) -> Any:
    if mutation.choices:
        return list(mutation.choices)
    return (tune.loguniform if mutation.log else tune.uniform)(mutation.low, mutation.high)
