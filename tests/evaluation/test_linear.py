"""The linear autoregression beside a model: on which data, and on how much of it."""

import numpy as np
import pytest
from memory import episodes_of

from tests.evaluation.linear_data import sampled
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.spaces import box_of
from worldmodel.envs.linear import linear_system
from worldmodel.evaluation import arx, linear
from worldmodel.evaluation.arx import fit_nested
from worldmodel.evaluation.baselines import AutoRegression, CopyLast
from worldmodel.evaluation.curves import horizon_curves
from worldmodel.evaluation.linear import LinearCurve, evaluated, linear_baseline
from worldmodel.evaluation.selection import RolloutOptions

SPAN = np.array([0]), np.array([9])
OPTIONS = RolloutOptions((1, 2), burn_in=4, starts=2, max_episodes=3, examples=1)


def test_its_errors_are_those_of_the_same_rollouts_and_measured_once(monkeypatch):
    train, val = sampled(linear_system(), 8, 40, seed=0), sampled(linear_system(), 5, 40, seed=1)
    fitted, fit = [], linear.linear_baseline
    monkeypatch.setattr(linear, "linear_baseline", lambda *args: fitted.append(1) or fit(*args))
    keep, splits = LinearCurve(), {"train": train, "val": val, "test": train}
    first, second = (evaluated(CopyLast(), splits, "val", 8, OPTIONS, keep) for _ in range(2))
    expected = horizon_curves(AutoRegression.fit(train, None, 8), OPTIONS.first_episodes(val), 8, OPTIONS, val)
    np.testing.assert_array_equal(first.linear, expected.nmse)
    assert second.linear is first.linear and len(fitted) == 1, "a validation does not fit it again"
    of_test = evaluated(CopyLast(), splits, "test", 8, OPTIONS, keep).linear
    assert len(fitted) == 2 and not np.array_equal(of_test, first.linear)
    assert evaluated(CopyLast(), {"val": val}, "val", 8, OPTIONS, keep).linear is None, "nothing to fit it to"
    assert {"rollout/linear@8", "rollout/copy_last@8"} <= first.metrics([8]).keys()


@pytest.mark.parametrize(("lengths", "number", "frames"), [([10] * 100, 20, 11), ([500, 500], 1, 201)])
def test_a_large_split_is_fitted_on_rows_that_are_spread_over_it(monkeypatch, lengths, number, frames):
    seen = []
    monkeypatch.setattr(arx, "nested_regressions", lambda train, most: seen.append(train))
    monkeypatch.setattr(arx, "ENTRIES", 200 * 8)  # 200 rows of 4 lags of 2 entries
    rows = sum(lengths) + len(lengths)
    train = episodes_of(np.zeros((rows, 1)), np.zeros((rows, 1)), lengths)
    fit_nested(train, None, 4)
    (some,) = seen
    assert len(some) == number and set(some.num_frames) == {frames} and some.starts[0] == 0
    monkeypatch.setattr(arx, "ENTRIES", 1 << 26)
    fit_nested(train, None, 4)
    assert seen[1] is train


def test_there_is_none_of_wide_frames_and_of_images():
    wide = episodes_of(np.zeros((9, 1024)), np.zeros((9, 1)), [8])
    assert linear_baseline(wide, 4) is None
    layout = Layout({"i": box_of(np.zeros((1, 8, 8, 1), np.uint8))}, box_of(np.zeros((1, 2))))
    pixels = np.zeros((9, 64), np.uint8)
    assert linear_baseline(Episodes(layout, np.zeros((9, 2), np.float32), pixels, *SPAN, ["e"]), 4) is None
