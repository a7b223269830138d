"""Where a baseline is ahead, in words, and what the losses of a training show."""

import csv

import numpy as np
import pytest

from worldmodel.evaluation.cause import Course, likely_cause, read_course
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.shortfall import listed, share_within, shortfalls

FULL = np.ones(10)


def curves(nmse, linear=None, copy_last=9.0, mean=1.0):
    horizon = np.arange(1, len(nmse) + 1)
    baselines = (np.full(len(nmse), level) for level in (copy_last, mean))
    linear = None if linear is None else np.array(linear)
    return HorizonCurves(horizon, np.array(nmse), *baselines, FULL, FULL, 1.0, 0.5, 1, [], linear)


@pytest.mark.parametrize(
    ("nmse", "linear", "said"),
    [
        ([0.2] * 10, [0.1] * 10, "a linear autoregression at every horizon (0.2 against 0.1 at 1)"),
        ([0.4, 0.3, *[0.1] * 8], [0.1, 0.2, *[0.3] * 8], "a linear autoregression up to 2 steps ahead (0.4 against"),
        ([*[0.5] * 7, 1.0, 1.5, 1.2], None, "the mean from 8 steps on (1.5 against 1 at 9)"),
        ([0.2, 0.1, 0.2, 2.0, *[0.2] * 6], None, "the mean at 4 steps (2 against 1)"),
        ([0.2, 3.0, 2.0, *[0.2] * 7], None, "the mean from 2 to 3 steps ahead (3 against 1 at 2)"),
        ([2, *[0.2] * 5, *[2] * 4], None, "the mean at 1 step and from 7 steps on"),
        ([2, 0, 2, 0, 2, 0, 2, 0, 2, 0], None, "the mean at 5 of 10 horizons, the first 1, the last 9 steps ahead"),
        ([np.inf] * 10, None, "the mean at every horizon (inf against 1 at 1)"),
        ([*[0.2] * 9, np.nan], None, "the mean at 10 steps (nan against 1)"),
        ([0.2] * 9 + [3.0], [*[0.1] * 9, np.inf], "a linear autoregression up to 9 steps ahead (0.2 against 0.1 at 1);"
         " than the mean at 10 steps (3 against 1)"),
    ],
)  # fmt: skip
def test_where_a_model_is_no_better(nmse, linear, said):
    assert listed(shortfalls(curves(nmse, linear))).startswith(said)


def test_a_model_that_is_ahead_everywhere_falls_short_of_nothing():
    assert shortfalls(curves([0.09] * 10, [0.1] * 10)) == []


def test_short_stretches_ahead_are_passed_over_at_long_horizons():
    nmse = np.where(np.arange(1, 301) == 200, 0.9, np.where(np.arange(1, 301) < 100, 0.1, 1.1))
    assert listed(shortfalls(curves(nmse))).startswith("the mean from 100 steps on (")


def test_the_share_of_the_trained_horizons():
    found = shortfalls(curves([0.2, 0.2, *[0.05] * 6, 2, 2], [0.1] * 10))
    assert (share_within(found, 4), share_within(found[:1], 2), share_within([], 4)) == (0.5, 1.0, 0.0)
    assert share_within(shortfalls(curves([0.1] * 9 + [2])), 9) == 0


# --- causes ------------------------------------------------------------------------------------------------------


def cause(losses, val=(), rate=1e-3, skipped=0, one_step=None, corrects=False):
    found = likely_cause(Course(100, list(losses), list(val), skipped, one_step), rate, corrects)
    return str(found)


@pytest.mark.parametrize(
    ("losses", "what"),
    [
        ([3.8, 512.0, 14000.0, 5900.0], "the learning rate is too high (0.001): the training loss rose from 3.8 to 1."),
        ([3.8, 400.0, 2.0, 0.4], "the learning rate is too high"),  # came down again
        ([3.8, 5.0, 6.0, 6.0], "the learning rate is too high"),
        ([3.8, float("nan"), float("nan")], "the learning rate is too high"),
        ([3.8, 2.0, 1.0, 0.6], "too few steps: the training loss still fell at the end, from 1 to 0.6"),
        ([3.8, 2.3], "too few steps: "),
        ([3.8, 3.7, 3.9, 3.8], "too few steps, or too low a learning rate: the training loss has hardly fallen"),
        ([3.8, 1.0, 0.5, 0.45], "None"),
        ([3.8], "None"),
        ([-1.0, -3.0, 2.0, -2.0], "None"),  # a log-likelihood has no ratios
    ],
)
def test_the_cause_that_the_losses_show(losses, what):
    assert cause(losses).startswith(what)


def test_the_cause_of_a_model_that_corrects_a_line():
    falls = [3.8, 2.0, 1.0, 0.6]
    enough = "a line may be enough: one step ahead the rule leaves 0.95 of the squared error of the line"
    assert cause(falls, one_step=0.95, corrects=True).startswith(enough)
    assert cause(falls, one_step=0.5, corrects=True).startswith("too few steps")
    assert cause(falls, one_step=0.95).startswith("too few steps"), "not in a line's units"
    assert cause(falls, rate=1.0, one_step=0.95, corrects=True).startswith("the learning rate is too high")
    assert cause([1.0, 60.0, 0.5, 0.45], corrects=True) == "None", "a batch of episodes' first frames"
    for losses in ([1.0, 60.0, 2.0, 3.0], [1.0, float("nan"), 2.0]):
        assert cause(losses, corrects=True).startswith("the learning rate is too high")


def test_the_cause_beside_the_losses():
    calm = [3.8, 1.0, 0.5, 0.45]
    assert cause(calm, val=[0.6, 0.95]).startswith("too little data for a model of this size: the loss is 0.95 on")
    assert cause(calm, val=[0.8]) == "None"
    assert cause(calm, rate=0.1).startswith("the learning rate is too high (0.1): a step may move every weight")
    assert cause(calm, rate=1.0).endswith("try --model.learning_rate 0.001")
    assert cause([3.8, 9.0, 9.0], rate=5e-4).endswith("try --model.learning_rate 5e-05")
    assert "2 of 100 updates were not finite" in cause(calm, skipped=2) and cause(calm, skipped=1) == "None"


def test_the_course_is_read_from_a_run(tmp_path):
    assert read_course(tmp_path) is None
    rows = [{"step": 0, "train/loss": 3.0}, {"step": 20, "val/loss": 2.0}, {"step": 20, "guard/skipped": 4.0}]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/loss", "guard/skipped"])
        writer.writeheader()
        writer.writerows(rows)
    assert read_course(tmp_path) == Course(20, [3.0, 2.0], [2.0], 4)
