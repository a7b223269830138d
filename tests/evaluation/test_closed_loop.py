"""The closed-loop curve with models whose errors are known."""

import numpy as np
import pytest
import torch
from memory import episodes_of

from worldmodel.evaluation import curves
from worldmodel.evaluation.curves import ClosedLoopCurve, closed_loop_curve


def noise_episodes(*lengths, seed=0):
    """Observations that nobody can predict, with what comes next as the action, so that a test's model can."""
    rng = np.random.default_rng(seed)
    obs = rng.standard_normal((sum(lengths) + len(lengths), 1)).astype(np.float32)
    return episodes_of(obs, np.append(obs[1:], np.zeros((1, 1), np.float32), axis=0), lengths)


class Counts:
    """Predicts what comes plus n - 1, where it has seen n frames since the last `is_first`; its state is n."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def closed_loop(self, obs, action, is_first, h=None):
        self.calls.append(obs.shape[:2])
        h = torch.full((len(obs), 1), torch.nan) if h is None else h  # only `is_first` starts an episode
        states = []
        for first in is_first.unbind(1):
            h = h.masked_fill(first[:, None], 0) + 1
            states.append(h)
        states = torch.stack(states, dim=1)
        return self.predict(action, states), states, h

    def predict(self, action, states):
        return action + states - 1

    observe = closed_loop

    def open_loop(self, z, h, action):
        raise NotImplementedError


def test_the_error_after_n_frames_stands_at_n():
    """Chunks of 7 steps, episodes of several lengths: each frame counts once, from its own episode's start."""
    episodes = noise_episodes(30, 12, 1, 25)
    curve = closed_loop_curve(Counts(), episodes, 7, 1000)
    variance = episodes.frames[:, 0].var(dtype=np.float64)
    np.testing.assert_allclose(curve.nmse, np.arange(30.0) ** 2 / variance, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(curve.hidden_norm, np.arange(1, 31))
    assert curve.episodes.tolist() == [4] + [3] * 11 + [2] * 13 + [1] * 5
    assert curve.norm_growth() == pytest.approx(1)


def test_only_so_many_frames_are_looked_at():
    episodes = noise_episodes(30, 12)
    short, whole = closed_loop_curve(Counts(), episodes, 7, 20), closed_loop_curve(Counts(), episodes, 7, 30)
    assert len(short.nmse) == 20
    np.testing.assert_array_equal(short.nmse, whole.nmse[:20])


def test_the_reference_gives_the_variance():
    episodes = noise_episodes(30)
    louder = episodes_of(10 * episodes.frames[:, :1], np.zeros((31, 1)), [30])
    own, other = (closed_loop_curve(Counts(), episodes, 7, 30, reference) for reference in (None, louder))
    np.testing.assert_allclose(own.nmse, 100 * other.nmse)


def test_episodes_are_run_in_groups(monkeypatch):
    episodes = noise_episodes(30, 12, 1, 25, 9)
    whole = closed_loop_curve(Counts(), episodes, 7, 30)
    monkeypatch.setattr(curves, "BLOCK", 14)
    model = Counts()
    parts = closed_loop_curve(model, episodes, 7, 30)
    assert max(lanes for lanes, _ in model.calls) == 2 and max(steps for _, steps in model.calls) == 7
    for name in ("nmse", "hidden_norm", "episodes"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)


def test_a_state_that_explodes_is_a_result():
    class Explodes(Counts):
        def predict(self, action, states):
            return action * torch.where(states > 9, torch.inf, 1.0)

    curve = closed_loop_curve(Explodes(), noise_episodes(20, 5), 7, 20)
    assert (curve.nmse[:9] == 0).all() and np.isinf(curve.nmse[9:]).all()
    assert curve.window(0, 9) == 0 and curve.window(0, 10) == np.inf
    assert ClosedLoopCurve(curve.nmse, curve.nmse, curve.episodes).norm_growth() == np.inf


def test_a_poisoned_episode_spoils_no_other():
    """Its own error is infinite; the steps that only others reach are untouched."""
    dirty = noise_episodes(30, 12)
    dirty.frames[dirty.rows(1)[3:], 0] = np.nan
    reference = noise_episodes(30, 12)
    clean, spoilt = (closed_loop_curve(Counts(), e, 7, 30, reference) for e in (reference, dirty))
    assert np.isinf(spoilt.nmse[2:12]).all()
    np.testing.assert_array_equal(spoilt.nmse[:2], clean.nmse[:2])
    np.testing.assert_array_equal(spoilt.nmse[12:], clean.nmse[12:])


def test_a_window_counts_predictions_and_the_slope_counts_episodes():
    curve = ClosedLoopCurve(np.array([1.0, 2, 4]), np.array([1.0, 2, 5]), np.array([3, 1, 1]))
    assert curve.window(0, 2) == pytest.approx((3 * 1 + 2) / 4)
    assert curve.window(1, 3) == pytest.approx(3)
    # by hand: sum w (s - 0.6) (n - mean) / sum w (s - 0.6)^2 = (3 * -0.6 * 1 + 0.4 * 2 + 1.4 * 5) / 3.2
    assert curve.norm_growth() == pytest.approx(6 / 3.2)
    assert ClosedLoopCurve(np.ones(1), np.ones(1), np.ones(1, int)).norm_growth() == 0
