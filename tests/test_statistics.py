import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from worldmodel.statistics import (
    arithmetic,
    count_test,
    geometric,
    holm,
    log_ratios,
    paired_test,
    scaled,
    t_interval,
)

NAN, INF = math.nan, math.inf


def test_t_interval_worked_by_hand():
    # mean 2, s = 1, s / sqrt(3) = 0.57735, t(0.975, 2) = 4.302653
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_geometric_mean_is_in_the_middle_of_decades():
    estimate = geometric([0.01, 1.0])
    assert estimate.mean == pytest.approx(0.1)
    # log10: mean -1, s = sqrt(2), s / sqrt(2) = 1, t(0.975, 1) = 12.7062
    assert (math.log10(estimate.low), math.log10(estimate.high)) == pytest.approx((-13.7062, 11.7062), abs=1e-4)
    assert (estimate.n, estimate.diverged) == (2, 0)


def test_diverged_runs_are_counted_and_left_out():
    estimate = geometric([0.2, INF, 0.2, NAN, 101.0], limit=100)
    assert estimate.mean == pytest.approx(0.2)
    assert (estimate.n, estimate.diverged) == (2, 3)


def test_where_all_diverged_the_mean_is_theirs():
    finite, overflowed = geometric([1e20, 1e28], limit=100), geometric([1e20, NAN], limit=100)
    assert finite.mean == pytest.approx(1e24)
    assert overflowed.mean == INF
    assert (finite.n, finite.diverged, overflowed.n, overflowed.diverged) == (0, 2, 0, 2)
    assert math.isnan(finite.low)


def test_one_seed_has_a_mean_and_no_interval():
    for estimate in (geometric([0.3]), arithmetic([0.3])):
        assert estimate.mean == pytest.approx(0.3)
        assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_nothing_has_no_mean():
    assert math.isnan(geometric([]).mean) and math.isnan(arithmetic([]).mean)


def test_errors_of_exactly_zero_have_a_mean():
    assert geometric([0.0, 0.0]).mean == pytest.approx(0.0, abs=1e-300)
    assert log_ratios([0.0], [0.0]) == [0.0]


def test_arithmetic_mean_leaves_out_what_overflowed():
    estimate = arithmetic([1.0, 3.0, INF])
    assert (estimate.mean, estimate.n, estimate.diverged) == (2.0, 2, 1)
    assert arithmetic([INF]).mean == INF


def test_scaling_scales_everything_but_the_counts():
    estimate = scaled(geometric([1.0, 2.0, INF]), 10)
    plain = geometric([1.0, 2.0, INF])
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(
        (10 * plain.mean, 10 * plain.low, 10 * plain.high)
    )
    assert (estimate.n, estimate.diverged) == (2, 1)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired_test_is_scipys(n):
    a, b = np.exp(np.random.default_rng(n).standard_normal((2, n)))
    ours = paired_test(log_ratios(a.tolist(), b.tolist()))
    theirs = stats.ttest_rel(np.log(a), np.log(b))
    interval = theirs.confidence_interval(0.95)
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))


@pytest.mark.parametrize(
    "differences, p",
    [
        ([0.0, 0.0], 1),
        ([0.0, 0.0, 0.0], 1),
        ([0.3, 0.3], NAN),  # two equal differences may be chance
        ([0.3, 0.3, 0.3], 0),
        ([math.log(0.2 / 0.1), math.log(0.4 / 0.2), math.log(0.6 / 0.3)], 0),  # equal up to rounding
        ([0.3], NAN),
        ([], NAN),
    ],
)
def test_without_spread(differences, p):
    assert paired_test(differences).p == pytest.approx(p, nan_ok=True)


def test_what_agrees_to_nine_digits_is_equal():
    assert log_ratios([0.1 * (1 + 1e-12), 0.1], [0.1, 0.1 * (1 + 1e-6)]) == [0.0, pytest.approx(-1e-6)]


def test_holm_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, NAN, 0.03]) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)
    assert holm([]) == []


def test_count_test_worked_by_hand():
    assert count_test(0, 3, 3) == pytest.approx(2 / 2**6)  # all 6 runs speak for a
    assert count_test(3, 0, 3) == count_test(0, 3, 3)
    assert count_test(0, 2, 2) == pytest.approx(2 / 2**4)  # two seeds never suffice
    assert count_test(0, 4, 5) == pytest.approx(2 * 11 / 2**10)
    assert count_test(5, 5, 5) == count_test(0, 0, 5) == 1
    assert math.isnan(count_test(0, 1, 1))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_count_test_is_rarely_wrong_whatever_the_probability_of_diverging(n):
    counts = np.arange(n + 1)
    rejected = np.array([[count_test(a, b, n) <= 0.05 for b in counts] for a in counts])
    for q in np.linspace(0.01, 0.99, 50):
        chance = binom.pmf(counts, n, q)
        assert chance @ rejected @ chance <= 0.05
