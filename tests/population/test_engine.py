"""Decisions of the population, by Ray Tune's own scheduler, from reports written by hand.

(Real members, real processes: tests/commands/test_pbt.py.)
"""

from random import Random
from types import SimpleNamespace

import pytest

from worldmodel.population.design import Mutation, Population
from worldmodel.population.engine import Exchanges
from worldmodel.population.folder import Board, Lineage
from worldmodel.population.member import HYPERPARAMETERS

RATE = "model.learning_rate"
SCORES = {10: [4, 3, 2, 1], 20: [1, 9, 5, 5], 30: [7, 7, float("inf"), 6], 40: [2, 1, 3, 4]}


class Member:
    """As much of a Trial as the scheduler looks at."""

    status, experiment_tag = "RUNNING", ""

    def __init__(self, number):
        self.trial_id, self.config, self.evaluated_params = f"abc_{number:05d}", {HYPERPARAMETERS: {RATE: 0.1}}, {}
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    @property
    def checkpoint(self):
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint

    def is_finished(self):
        return False

    def set_config(self, config):
        self.config = config

    def set_experiment_tag(self, tag):
        pass


class Silent:
    def report(self, member, report):
        pass

    def exchange(self, step, exploits):
        pass


def evolve(folder, steps, mode="min", seed=0):
    """Members report these steps in some order, with the hyperparameters that were decided on."""
    folder.mkdir(exist_ok=True)
    population = Population(
        out=folder, config="", defaults={}, trains="world_model", data="", size=4, interval=10, last_step=50, mutate=[],
        mutations=[Mutation(RATE, 1e-4, 1.0, log=True)], starts=[], quantile=0.25, metric="val/loss", mode=mode,
        seed=seed, data_seed=0, threads=1, gpus=0, keep=2,
    )  # fmt: skip
    scheduler = Exchanges(population, Lineage(), Silent())
    members = [Member(number) for number in range(4)]
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: members, get_live_trials=lambda: members)
    for member in members:
        scheduler.on_trial_add(controller, member)
    rates = [0.1, 0.2, 0.3, 0.4]
    for step in sorted(SCORES):
        for exploit in Board(folder).read(step - 10) or ():
            rates[exploit.member] = exploit.after[RATE]
        if step not in steps:
            continue
        for number in Random(f"{steps}{step}").sample(range(4), 4):
            assert Board(folder).read(step) is None, "nothing before all have reported"
            result = {"step": step, "score": SCORES[step][number], f"{HYPERPARAMETERS}/{RATE}": rates[number]}
            assert scheduler.on_trial_result(controller, members[number], result) == "CONTINUE", "nobody is paused"
    return Board(folder).all()


def test_the_worst_copies_the_best_with_a_perturbed_rate(tmp_path):
    exploits = evolve(tmp_path / "a", list(SCORES))
    assert [(e.step, e.member, e.donor, e.score, e.donor_score) for e in exploits] == [
        (10, 0, 3, 4, 1),
        (20, 1, 0, 9, 1),
        (30, 2, 3, float("inf"), 6),
        (40, 3, 1, 4, 1),
    ]
    first = exploits[0]
    assert first.before == {RATE: 0.1} and set(first.after) == {RATE}
    assert 1e-4 <= first.after[RATE] <= 1.0 and first.after[RATE] != 0.1
    assert [(e.step, e.member, e.donor) for e in evolve(tmp_path / "b", list(SCORES), "max")][:2] == [
        (10, 3, 0),
        (20, 0, 1),
    ]


def test_decisions_follow_from_scores_step_and_seed_alone(tmp_path):
    """Also where the population was restarted after an exchange."""
    whole = evolve(tmp_path / "whole", list(SCORES))
    for last in (10, 20, 30):
        folder = tmp_path / f"until{last}"
        evolve(folder, [step for step in SCORES if step <= last])
        assert evolve(folder, [step for step in SCORES if step > last]) == whole
    assert evolve(tmp_path / "seed", list(SCORES), seed=1) != whole


@pytest.mark.parametrize("member", [0, 3])
def test_a_member_that_reports_twice_changes_nothing(tmp_path, member, monkeypatch):
    """It died after its report, and was restarted."""
    whole = evolve(tmp_path / "whole", [10])
    once = Exchanges.on_trial_result

    def twice(self, controller, trial, result):
        if trial.trial_id.endswith(str(member)) and len(self._reports.get(10, ())) < 3:
            once(self, controller, trial, result)
        return once(self, controller, trial, result)

    monkeypatch.setattr(Exchanges, "on_trial_result", twice)
    assert evolve(tmp_path / "twice", [10]) == whole
