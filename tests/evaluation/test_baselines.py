"""Baselines by hand, on systems that they know exactly, and against the floor."""

import numpy as np
import pytest
import torch
from memory import episodes_of

from tests.evaluation.linear_data import sampled, stacked
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.envs.linear import linear_system
from worldmodel.errors import UserError
from worldmodel.evaluation import arx
from worldmodel.evaluation.baselines import AutoRegression, CopyLast, Mean
from worldmodel.evaluation.curves import closed_loop_curve, horizon_curves
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.selection import RolloutOptions

ROOTS = 0.95 * np.exp(0.4j), 0.7  # of the oscillation that `oscillations` are


def oscillations(*lengths, seed=0, offset=3.0, scale=1.0):
    """y'' without noise: three lags and three actions tell the next exactly (float32 rounds to 6e-8)."""
    coefficients = -np.poly([ROOTS[0], np.conj(ROOTS[0]), ROOTS[1]]).real[1:]
    rng = np.random.default_rng(seed)
    obs, action = [], []
    for length in lengths:
        y, a = list(rng.standard_normal(3)), rng.uniform(-1, 1, length + 1)
        for t in range(2, length):
            y.append(coefficients @ y[: -4 if t > 2 else None : -1][:3] + 0.5 * a[t] + 0.3 * a[t - 1] - 0.2 * a[t - 2])
        obs.append(offset + scale * np.array(y[: length + 1]))
        action.append(np.append(a[:length], 0))
    columns = (np.concatenate(column)[:, None].astype(np.float32) for column in (obs, action))
    return episodes_of(*columns, lengths)


def tensors(episodes):
    obs, action = stacked(episodes)
    is_first = torch.zeros(obs.shape[0], obs.shape[1] - 1, dtype=torch.bool)
    is_first[:, 0] = True
    return torch.tensor(obs[:, :-1]), torch.tensor(action[:, :-1]), is_first, torch.tensor(obs[:, 1:])


# --- copy last, and the mean -------------------------------------------------------------------------------------


def test_copy_last_and_mean_by_hand():
    """0, 1, .., 20: copying is off by k after k steps; the mean is 10."""
    episodes = episodes_of(np.arange(21.0)[:, None], np.zeros((21, 1)), [20])
    variance = np.arange(21).var()
    closed = closed_loop_curve(CopyLast(), episodes, 6, 20)
    np.testing.assert_allclose(closed.nmse, np.full(20, 1 / variance), rtol=1e-6)
    np.testing.assert_allclose(
        closed_loop_curve(Mean(episodes), episodes, 6, 20).nmse, (np.arange(1, 21) - 10) ** 2 / variance, rtol=1e-6
    )
    opened = horizon_curves(CopyLast(), episodes, 6, RolloutOptions((1, 2), burn_in=2, starts=1))
    np.testing.assert_allclose(opened.nmse, np.arange(1, 13) ** 2 / variance, rtol=1e-6)


def test_they_are_the_baselines_of_every_rollout():
    episodes = sampled(linear_system(obs_dim=3), 4, 80, seed=0)
    for name, model in (("copy_last", CopyLast()), ("mean", Mean(episodes))):
        curves = horizon_curves(model, episodes, 8, RolloutOptions((1, 2, 5)))
        np.testing.assert_allclose(curves.nmse, getattr(curves, name), rtol=1e-6)
        assert (curves.hidden_norm == 0).all(), "they remember nothing"


def test_of_images_too():
    images = np.arange(21, dtype=np.uint8)[:, None].repeat(192, axis=1)
    space = {"type": "Box", "shape": [8, 8, 3], "dtype": "uint8"}
    layout = Layout({"i": space}, {"type": "Box", "shape": [1], "dtype": "float32"})
    episodes = Episodes(layout, np.zeros((21, 3), np.float32), images, np.array([0]), np.array([21]), ["e"])
    curve = closed_loop_curve(CopyLast(), episodes, 6, 20)
    np.testing.assert_allclose(curve.nmse, np.full(20, 1 / np.arange(21).var()), rtol=1e-6)
    assert closed_loop_curve(Mean(episodes), episodes, 6, 20).nmse[9] == 0
    with pytest.raises(UserError, match=r"takes vectors, not images \(i\)"):
        AutoRegression.fit(episodes, 1, 4)


# --- autoregression ----------------------------------------------------------------------------------------------


def test_one_lag_by_hand():
    """Next = 2 x + 1 + action, from three transitions; predicted for two others."""
    obs = np.array([[0.0], [1.5], [4.0], [8.0]])
    action = np.array([[0.5], [0.0], [-1.0], [0.0]])
    model = AutoRegression.fit(episodes_of(obs, action, [3]), 1, 1)
    pred, _, _ = model.closed_loop(
        torch.tensor([[[1.0], [-2.0]]]), torch.tensor([[[0.0], [3.0]]]), torch.zeros(1, 2).bool()
    )
    np.testing.assert_allclose(pred, [[[3.0], [0.0]]], atol=1e-6)
    rollout = model.open_loop(torch.tensor([[1.0]]), torch.zeros(1, 3).double(), torch.tensor([[[0.0], [1.0], [0.0]]]))
    np.testing.assert_allclose(rollout.obs, [[[3.0], [8.0], [17.0]]], atol=1e-5)


def test_a_linear_system_without_noise_is_predicted_to_rounding():
    train, test = oscillations(*[100] * 30), oscillations(*[150] * 5, seed=1)
    model = AutoRegression.fit(train, 3, 32)
    closed = closed_loop_curve(model, test, 10, 150)
    assert (closed.nmse[2:] < 1e-12).all() and (closed.nmse[:2] > 1e-3).all(), "two frames are too few"
    assert (horizon_curves(model, test, 10, RolloutOptions((1, 5, 10), burn_in=2)).nmse < 1e-11).all()
    chosen = AutoRegression.fit(train, None, 32)
    assert 3 < chosen.lags <= 32
    assert (horizon_curves(chosen, test, 10, RolloutOptions((1, 5, 10), burn_in=40)).nmse < 1e-9).all()


def test_the_units_do_not_matter():
    """A large offset, a tiny scale: the same predictions up to float32's rounding of the data."""
    one, other = oscillations(*[100] * 10), oscillations(*[100] * 10, offset=-50.0, scale=0.01)
    for episodes, scale in ((one, 1), (other, 0.01)):
        obs, action, is_first, after = tensors(episodes)
        pred, _, _ = AutoRegression.fit(episodes, 3, 8).closed_loop(obs, action, is_first)
        assert (pred - after)[:, 3:].abs().max() < scale * 2e-3


def test_it_is_least_squares_over_all_full_windows():
    """Against numpy's solution on a matrix that is written out."""
    train, lags = sampled(linear_system(obs_dim=2), 12, 40, seed=0), 4
    obs, action, is_first, after = tensors(train)
    windows = range(lags - 1, 40)
    past = [torch.cat([obs[:, t - i], action[:, t - i]], 1) for t in windows for i in range(lags)]
    inputs = torch.stack(past).unflatten(0, (len(windows), lags)).transpose(1, 2).flatten(2).flatten(0, 1).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).numpy()
    outputs = torch.cat([after[:, t] for t in windows]).double().numpy()
    expected = inputs @ np.linalg.lstsq(inputs, outputs)[0]
    pred, _, _ = AutoRegression.fit(train, lags, lags).closed_loop(obs, action, is_first)
    np.testing.assert_allclose(torch.cat([pred[:, t] for t in windows]), expected, atol=1e-7)


def test_an_episodes_start_has_regressions_of_its_own():
    """After c frames it predicts as the regression on c frames that is fitted alone."""
    train, test = sampled(linear_system(), 20, 50, seed=0), sampled(linear_system(), 3, 8, seed=1)
    obs, action, is_first, _ = tensors(test)
    long, _, _ = AutoRegression.fit(train, 6, 6).closed_loop(obs, action, is_first)
    for lags in range(1, 7):
        short, _, _ = AutoRegression.fit(train, lags, lags).closed_loop(obs, action, is_first)
        torch.testing.assert_close(long[:, lags - 1], short[:, lags - 1], rtol=0, atol=1e-9)
    assert (long[:, 7] - short[:, 7]).abs().max() < 1e-9


@pytest.mark.parametrize("lags", [1, 2, 7])
def test_segments_with_resets_are_one_pass(lags):
    model = AutoRegression.fit(sampled(linear_system(obs_dim=2), 20, 50, seed=0), lags, lags)
    obs, action, is_first, _ = tensors(sampled(linear_system(obs_dim=2), 2, 30, seed=1))
    is_first[0, 7] = is_first[0, 8] = True
    whole, states, carry = model.closed_loop(obs, action, is_first)
    h, parts = None, []
    for begin in range(0, 30, 4):
        here = slice(begin, begin + 4)
        pred, _, h = model.closed_loop(obs[:, here], action[:, here], is_first[:, here], h)
        parts.append(pred)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, carry, rtol=0, atol=0)
    for first, last in ((0, 7), (7, 8), (8, 30)):
        here = (slice(0, 1), slice(first, last))
        alone, _, _ = model.closed_loop(obs[here], action[here], is_first[here])
        torch.testing.assert_close(alone, whole[here], rtol=0, atol=1e-12)
    # every state goes on as the pass did
    for t in (0, 3, 7, 12):
        on, _, _ = model.closed_loop(obs[:, t + 1 :], action[:, t + 1 :], is_first[:, t + 1 :], states[:, t])
        torch.testing.assert_close(on, whole[:, t + 1 :], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lags", [1, 2, 7])
def test_open_loop_is_closed_loop_on_its_own_predictions(lags):
    """From the third frame on, where 7 lags are not there yet; and in chunks of 5."""
    model = AutoRegression.fit(sampled(linear_system(obs_dim=2), 20, 50, seed=0), lags, lags)
    obs, action, is_first, _ = tensors(sampled(linear_system(obs_dim=2), 3, 20, seed=1))
    _, _, start = model.observe(obs[:, :2], action[:, :2], is_first[:, :2])
    rollout = model.open_loop(obs[:, 2].double(), start, action[:, 2:])
    imagined = torch.cat([obs[:, :3].double(), rollout.obs], 1)[:, :20]
    again, states, _ = model.closed_loop(imagined, action, is_first)
    torch.testing.assert_close(rollout.obs, again[:, 2:], rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.h[:, -1], states[:, -1], rtol=0, atol=1e-12)
    z, h, parts = obs[:, 2].double(), start, []
    for begin in range(2, 20, 5):
        part = model.open_loop(z, h, action[:, begin : begin + 5])
        z, h = part.z[:, -1], part.h[:, -1]
        parts.append(part.obs)
    torch.testing.assert_close(torch.cat(parts, 1), rollout.obs, rtol=0, atol=1e-12)


def test_a_nan_in_one_episode_stays_there():
    train = sampled(linear_system(), 20, 50, seed=0)
    model = AutoRegression.fit(train, 4, 4)
    obs, action, is_first, _ = tensors(sampled(linear_system(), 2, 20, seed=1))
    is_first[0, 10] = True
    clean, _, _ = model.closed_loop(obs, action, is_first)
    obs[0, 9] = torch.nan
    dirty, _, _ = model.closed_loop(obs, action, is_first)
    assert dirty[0, 9].isnan().all()
    torch.testing.assert_close(dirty[0, 10:], clean[0, 10:], rtol=0, atol=0)
    torch.testing.assert_close(dirty[1], clean[1], rtol=0, atol=0)


def test_the_order_is_chosen_on_episodes_that_were_not_fitted():
    """Noise that nothing explains: one lag. A long memory: all lags. Between them, powers of two."""
    rng = np.random.default_rng(0)
    noise = episodes_of(rng.standard_normal((510, 1)), rng.uniform(-1, 1, (510, 1)), [50] * 10)
    assert AutoRegression.fit(noise, None, 20).lags == 1
    long = sampled(linear_system(process_noise=0.02), 50, 100, seed=0)
    assert AutoRegression.fit(long, None, 20).lags == 20
    few = sampled(linear_system(), 6, 60, seed=0)
    assert AutoRegression.fit(few, None, 40).lags in (2, 4, 8, 16)
    assert AutoRegression.fit(few, 5, 40).lags == 5


@pytest.mark.parametrize("lengths", [[400], [200, 150], [3], [1], [1, 1, 2], [1] * 12, [2, 90, 1, 1, 1, 1]])
def test_few_or_short_episodes(lengths):
    """No more lags than the longest episode has transitions; predictions are finite."""
    train = oscillations(*lengths) if min(lengths) > 2 else _noise(lengths)
    model = AutoRegression.fit(train, None, 8)
    assert 1 <= model.lags <= min(8, max(lengths))
    pred, _, _ = model.closed_loop(torch.randn(2, 12, 1), torch.randn(2, 12, 1), torch.zeros(2, 12).bool())
    assert pred.isfinite().all()
    if lengths[0] == 400:
        assert model.lags >= 4, "one episode is enough to choose by"


def _noise(lengths):
    rng = np.random.default_rng(0)
    rows = sum(lengths) + len(lengths)
    return episodes_of(rng.standard_normal((rows, 1)), rng.uniform(-1, 1, (rows, 1)), lengths)


def test_a_constant_entry_is_predicted_as_it_is():
    train = oscillations(*[60] * 10)
    obs, action = stacked(train)
    wider = np.concatenate([obs, np.full_like(obs, 7.0)], axis=-1).reshape(-1, 2)
    model = AutoRegression.fit(episodes_of(wider, action.reshape(-1, 1), [60] * 10), 3, 3)
    obs, action, is_first, after = tensors(episodes_of(wider, action.reshape(-1, 1), [60] * 10))
    pred, _, _ = model.closed_loop(obs, action, is_first)
    np.testing.assert_allclose(pred[:, 3:], after[:, 3:], atol=1e-5)
    np.testing.assert_allclose(pred[..., 1], 7.0, rtol=1e-9)


def test_an_unstable_one_explodes_and_that_is_a_result():
    rng = np.random.default_rng(0)
    obs = np.exp(0.7 * np.arange(31)) * rng.uniform(0.5, 1, (20, 1))
    train = episodes_of(obs.reshape(-1, 1), np.zeros((620, 1)), [30] * 20)
    model = AutoRegression.fit(train, 1, 1)
    long = episodes_of(np.arange(1501.0)[:, None], np.zeros((1501, 1)), [1500])
    curves = horizon_curves(model, long, 10, RolloutOptions((1, 100), burn_in=5, starts=1))
    assert np.isinf(curves.nmse[-1]) and np.isfinite(curves.nmse[0])


def test_few_rows_at_once_give_the_same(monkeypatch):
    train = sampled(linear_system(obs_dim=2), 10, 50, seed=0)
    whole = AutoRegression.fit(train, None, 8)
    monkeypatch.setattr(arx, "BLOCK", 200)
    parts = AutoRegression.fit(train, None, 8)
    obs, action, is_first, _ = tensors(train)
    one, other = (model.closed_loop(obs, action, is_first)[0] for model in (whole, parts))
    assert whole.lags == parts.lags
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("lags", "most"), [(0, 4), (None, 0), (-1, 4)])
def test_no_lags_are_a_mistake(lags, most):
    with pytest.raises(UserError, match="at least 1 lag"):
        AutoRegression.fit(_noise([20]), lags, most)


def test_wide_frames_have_fewer_lags(monkeypatch):
    tried, fit = [], arx.nested_regressions
    monkeypatch.setattr(arx, "nested_regressions", lambda train, most: tried.append(most) or fit(train, most))
    rng = np.random.default_rng(0)
    wide = episodes_of(rng.standard_normal((63, 4)), rng.standard_normal((63, 336)), [20] * 3)
    assert AutoRegression.fit(wide, None, 32).lags <= 3
    assert AutoRegression.fit(wide, 4, 32).lags == 4, "what is asked for is done"
    assert tried == [1024 // 340, 4]


def test_on_the_linear_system_it_comes_close_to_the_floor():
    """Order 32, as in conf/linear.yaml: 1 to 3% above the Kalman filter, in closed and in open loop."""
    system = linear_system()
    train, test = sampled(system, 100, 400, seed=0), sampled(system, 40, 400, seed=1)
    models = AutoRegression.fit(train, None, 32), KalmanFilter(system)
    regression, floor = (closed_loop_curve(model, test, 32, 400) for model in models)
    for begin, end in ((0, 32), (32, 64), (64, 400)):
        assert 0.995 < regression.window(begin, end) / floor.window(begin, end) < 1.03
    regression, floor = (horizon_curves(model, test, 32, RolloutOptions((1, 5, 10))).nmse for model in models)
    for k in (1, 8, 32, 160, 320):
        assert 0.98 < regression[k - 1] / floor[k - 1] < 1.05
