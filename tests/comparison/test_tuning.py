"""What a tuning tries, and who goes on from rung to rung."""

import math

import pytest
from comparison.made_up import make_comparison

from worldmodel.comparison.report import write_report
from worldmodel.comparison.tables import markdown
from worldmodel.comparison.tuned import tuning_rows
from worldmodel.comparison.tuning import (
    Range,
    Rung,
    Tuned,
    Tuning,
    ranges_of,
    read_scores,
    rungs_of,
    trials_of,
    write_score,
)
from worldmodel.comparison.verdict import judge
from worldmodel.durable import read_json, write_json
from worldmodel.errors import UserError

RATE, BIAS, WARM = "model.learning_rate", "model.gate_bias", "model.warmup_steps"
OWN = {RATE: 1e-3, BIAS: -1.0, WARM: 100}


def tuning(trials: int = 8, mode="min", metric: str = "val/loss") -> Tuning:
    ranges = ranges_of([f"{RATE}=log:1e-4..1e-2"], OWN)
    return Tuning(ranges, trials_of(ranges, OWN, trials), rungs_of(trials, 900), metric, mode, [], trials)


def test_ranges_are_read():
    texts = [f"{RATE}=log:1e-4..1e-2", f"--{BIAS}=-2..1", f"{WARM}=0..200", "model.lr_schedule=constant,cosine"]
    rate, bias, warm, schedule = ranges_of(texts, OWN)
    assert (rate.at(0), rate.at(0.5), rate.at(1)) == ("0.0001", "0.001", "0.01")
    assert (bias.at(0), bias.at(0.5), bias.at(1)) == ("-2", "-0.5", "1")
    assert (warm.at(0), warm.at(0.337), warm.at(1)) == ("0", "67", "200"), "as the configuration's: whole"
    assert [schedule.at(share) for share in (0, 0.49, 0.51, 1)] == ["constant", "constant", "cosine", "cosine"]
    assert str(rate) == "model.learning_rate 0.0001 to 0.01 (log)" and str(schedule).endswith(" constant, cosine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RATE, "write KEY=LOW..HIGH"),
        (f"{RATE}=1..1", "1 is not below 1"),
        (f"{RATE}=log:0..1", "0 must be above 0 on a log scale"),
        (f"{RATE}=log:-1..1", "-1 must be above 0"),
        (f"{RATE}=log:1", "it names no two values"),
        (f"{RATE}=1..x", "'x' is not a number"),
        (f"{RATE}=..2", "'' is not a number"),
        (f"{RATE}=0.1", "it names no two values"),
        (f"{RATE}=0.1,0.1", "it names no two values, or one twice"),
        (f"{RATE}=0.1,", "it names no two values"),
    ],
)
def test_a_range_without_values_is_told(text, message):
    with pytest.raises(UserError, match=message):
        ranges_of([text], OWN)


def test_trials_are_spread_the_same_each_time_and_begin_with_the_configuration():
    ranges = ranges_of([f"{RATE}=log:1e-4..1e-2", f"{BIAS}=-2..1"], OWN)
    trials = trials_of(ranges, OWN, 9)
    assert trials == trials_of(ranges, OWN, 9) and trials[:5] == trials_of(ranges, OWN, 5)
    assert trials[0] == {RATE: "0.001", BIAS: "-1.0"}
    assert trials_of(ranges, {RATE: 1.0, BIAS: -1.0}, 8) == trials[1:], "which lies outside here"
    quarters = [int(2 * (math.log10(float(trial[RATE])) + 4)) for trial in trials[1:]]
    assert sorted(quarters) == [0, 0, 1, 1, 2, 2, 3, 3], "a Sobol sequence"
    assert all(-2 <= float(trial[BIAS]) <= 1 for trial in trials)


def test_no_trial_is_made_twice_and_a_range_may_hold_few():
    ranges = ranges_of(["model.lr_schedule=constant,cosine", "model.layers=1,2"], {"model.layers": 1})
    trials = trials_of(ranges, {"model.lr_schedule": "cosine", "model.layers": 1}, 8)
    assert len(trials) == 4 == len({tuple(trial.values()) for trial in trials})
    few = trials_of([Range(WARM, 0, 2, whole=True)], {WARM: 1}, 8)
    assert sorted(trial[WARM] for trial in few) == ["0", "1", "2"]
    assert len(trials_of([Range(RATE, choices=("1e-3", "1e-2"))], OWN, 8)) == 2, "0.001 is the configuration's"


@pytest.mark.parametrize(
    ("trials", "rungs"),
    [
        (2, [(900, 2)]),
        (3, [(300, 3), (900, 2)]),
        (8, [(100, 8), (300, 3), (900, 2)]),
        (27, [(33, 27), (100, 9), (300, 3), (900, 2)]),
    ],
)
def test_a_third_goes_on_and_two_reach_the_full_length(trials, rungs):
    assert rungs_of(trials, 900) == [Rung(*rung) for rung in rungs]


def test_the_budget_counts_each_step_once():
    assert tuning().steps == 8 * 100 + 3 * 200 + 2 * 600
    assert tuning().budget() == "8 trials (8 to step 100, 3 to step 300, 2 to step 900: 2,600 steps in all)"


def test_the_best_of_a_rung_go_on_whatever_the_order():
    plan = tuning()
    scores = [{100: score} for score in (5.0, 3.0, math.nan, 1.0, 4.0, 2.0, 6.0, 7.0)]
    first = plan.course([{}, *scores[1:]])
    assert (first.waiting, first.rung, first.winner) == ([0], 0, None)
    assert plan.course(scores).waiting == [1, 3, 5]
    for trial, score in ((1, 0.1), (3, 0.3), (5, 0.2)):
        scores[trial][300] = score
    assert plan.course(scores).waiting == [1, 5]
    scores[5][900], scores[1][900] = 0.01, 0.02
    assert (plan.course(scores).waiting, plan.course(scores).winner) == ([], 5)
    worst = tuning(mode="max").course([{100: trial[100]} for trial in scores])
    assert worst.waiting == [0, 6, 7], "a metric of which the highest is the best; NaN is never"


def test_ties_go_to_the_first_trial():
    assert tuning().course([{100: 1.0}] * 8).waiting == [0, 1, 2]


def test_scores_are_of_one_command_and_damage_is_none(tmp_path):
    command = ["worldmodel", "fit", "--config", "a.yaml", "--x", "1"]
    write_score(tmp_path, command, 10, math.nan)
    write_score(tmp_path, command, 30, 0.5)
    found = read_scores(tmp_path, [*command[:3], "elsewhere.yaml", *command[4:]])
    assert math.isnan(found[10]) and found[30] == 0.5
    assert read_scores(tmp_path, [*command, "--y"]) == {}
    (tmp_path / "trial.json").write_text("{}")
    assert read_scores(tmp_path, command) == {}


def test_the_plan_survives_the_design(tmp_path):
    write_json(tmp_path / "design.json", tuning().plain())
    assert Tuning.read(read_json(tmp_path / "design.json") | {"commands": {}}) == tuning()


def test_the_report_shows_what_was_tried_and_a_winner_at_the_edge(tmp_path):
    comparison, plan = make_comparison(tmp_path, ["gru, carry", "lstm, carry"], [0, 1]), tuning(3)
    comparison.design["tuning"] = plan.plain()
    rates = [float(trial[RATE]) for trial in plan.trials]
    middle, top = sorted(range(3), key=lambda n: rates[n])[1:]
    for variant, winner in (("gru, carry", middle), ("lstm, carry", top)):
        scores = [{300: 2.0 + abs(n - winner)} for n in range(3)]
        scores[winner][900], scores[(winner + 1) % 3][900] = 1.0, math.nan
        comparison.tuned.append(Tuned(variant, scores, winner))
    verdict = judge(comparison)
    (said,) = (sentence for sentence in verdict.summary if sentence.startswith("Tuned alike: 3 trials a rule over "))
    assert (
        f"lstm, carry with {RATE} {rates[top]:g}, the highest that was tried" in said and "gru, carry with" not in said
    )
    headings, rows = tuning_rows(comparison)
    assert headings[-2:] == ["val/loss at step 300", "val/loss at step 900"]
    assert rows[0][1:] == [f"{middle} *", plan.trials[middle][RATE], "2", "1"] and rows[1][-1] == "diverged"
    assert "Tuning" in markdown(verdict, comparison)
    write_report(comparison, verdict, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('id="plot-tuning-') == 2 and "3 trials, 2,100 steps" in page and plan.budget() in page
