"""The Kalman filter against filterpy, against conditioning a joint Gaussian, and against chance."""

import filterpy.kalman
import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, solve_discrete_are, solve_discrete_lyapunov

from tests.evaluation.linear_data import sampled, stacked
from worldmodel.data.statistics import observation_moments
from worldmodel.envs.linear import linear_system
from worldmodel.evaluation import rollouts
from worldmodel.evaluation.baselines import AutoRegression
from worldmodel.evaluation.curves import closed_loop_curve, horizon_curves
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.selection import RolloutOptions

SYSTEMS = {
    "default": {},
    "heavily damped": {"order": 2, "damping": 0.5},
    "wide": {"order": 6, "damping": 0.02, "obs_dim": 3, "action_dim": 2, "system_seed": 3},
    "high order": {"order": 16, "damping": 0.1, "system_seed": 1},
    "almost no noise": {"process_noise": 1e-3, "observation_noise": 0.01},
    "much noise": {"process_noise": 3, "observation_noise": 2, "obs_dim": 2},
}


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def system(request):
    return linear_system(**request.param)


def tensors(episodes):
    """Observations, actions and is_first of all transitions (E, T, ...), and the frames to predict (E, T, O)."""
    obs, action = stacked(episodes)
    is_first = torch.zeros(obs.shape[0], obs.shape[1] - 1, dtype=torch.bool)
    is_first[:, 0] = True
    return torch.tensor(obs[:, :-1]), torch.tensor(action[:, :-1]), is_first, torch.tensor(obs[:, 1:])


def reference_filter(system):
    one = filterpy.kalman.KalmanFilter(dim_x=len(system.A), dim_z=len(system.C), dim_u=system.B.shape[1])
    one.F, one.B, one.H, one.Q, one.R = system.A, system.B, system.C, system.Q, system.R
    one.P = system.start.copy()
    return one


def test_means_and_covariances_are_filterpys(system):
    ours = KalmanFilter(system)
    obs, action, is_first, _ = tensors(sampled(system, 2, 60, seed=0))
    pred, states, _ = ours.closed_loop(obs, action, is_first)
    for i in range(2):
        theirs = reference_filter(system)
        for t in range(60):
            theirs.update(obs[i, t].double().numpy()[:, None])
            theirs.predict(action[i, t].double().numpy()[:, None])
            np.testing.assert_allclose(states[i, t, :-1], theirs.x[:, 0], atol=1e-9)
            np.testing.assert_allclose(pred[i, t], (system.C @ theirs.x)[:, 0], atol=1e-9)
            expected = system.C @ theirs.P @ system.C.T + system.R
            np.testing.assert_allclose(ours.innovation(t + 1), expected, rtol=1e-9, atol=1e-9)


def test_open_loop_is_filterpys_prediction_without_update(system):
    ours, steps = KalmanFilter(system), 25
    obs, action, is_first, _ = tensors(sampled(system, 1, 12 + steps, seed=1))
    _, _, carry = ours.observe(obs[:, :12], action[:, :12], is_first[:, :12])
    rollout = ours.open_loop(obs[:, 12].double(), carry, action[:, 12:])
    theirs = reference_filter(system)
    for t in range(13):
        theirs.update(obs[0, t].double().numpy()[:, None])
        theirs.predict(action[0, t].double().numpy()[:, None])
    for k in range(1, steps + 1):
        np.testing.assert_allclose(rollout.obs[0, k - 1], (system.C @ theirs.x)[:, 0], atol=1e-9)
        expected = system.C @ theirs.P @ system.C.T + system.R
        np.testing.assert_allclose(ours.prediction_covariance(13, k), expected, rtol=1e-9, atol=1e-9)
        if k < steps:
            theirs.predict(action[0, 12 + k].double().numpy()[:, None])


def joint_covariance(system, frames):
    """Of the observations y_0 .. y_{frames - 1}, stacked, given the actions: no recursion over estimates."""
    n = len(system.A)
    state_noise = block_diag(system.start, *[system.Q] * (frames - 1))
    into_states = np.zeros((frames * n, frames * n))  # x_t = sum_s A^(t - s) w_s, w_0 = x_0
    for t in range(frames):
        for s in range(t + 1):
            into_states[t * n : (t + 1) * n, s * n : (s + 1) * n] = np.linalg.matrix_power(system.A, t - s)
    outputs = np.kron(np.eye(frames), system.C) @ into_states
    return outputs @ state_noise @ outputs.T + np.kron(np.eye(frames), system.R)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_it_conditions_the_joint_gaussian(system, frames):
    """Predictions 1 .. 6 steps ahead, and their covariances, by one linear solve over all observations."""
    steps, ours, size = 6, KalmanFilter(system), len(system.C)
    obs, action, is_first, _ = tensors(sampled(system, 3, frames + steps - 1, seed=2))
    h = torch.zeros(3, len(system.A) + 1, dtype=torch.float64)
    if frames > 1:
        _, _, h = ours.closed_loop(obs[:, : frames - 1], action[:, : frames - 1], is_first[:, : frames - 1])
    rollout = ours.open_loop(obs[:, frames - 1].double(), h, action[:, frames - 1 :])
    driven = np.zeros((3, frames + steps, size))  # what the actions alone cause
    x = np.zeros((3, len(system.A)))
    for t in range(1, frames + steps):
        x = x @ system.A.T + action[:, t - 1].double().numpy() @ system.B.T
        driven[:, t] = x @ system.C.T
    joint, seen = joint_covariance(system, frames + steps), frames * size
    gain = np.linalg.solve(joint[:seen, :seen], joint[:seen, seen:]).T
    surprise = obs[:, :frames].double().numpy() - driven[:, :frames]
    mean = driven[:, frames:] + (surprise.reshape(3, -1) @ gain.T).reshape(3, steps, size)
    np.testing.assert_allclose(rollout.obs, mean, atol=1e-9)
    covariance = joint[seen:, seen:] - gain @ joint[:seen, seen:]
    for k in range(steps):
        here = slice(k * size, (k + 1) * size)
        np.testing.assert_allclose(ours.prediction_covariance(frames, k + 1), covariance[here, here], atol=1e-9)


def test_errors_are_as_large_as_promised():
    """Mean squared errors over 4000 episodes: within 4.5 standard errors of the closed form."""
    system, number = linear_system(obs_dim=2, damping=0.02), 4000
    ours = KalmanFilter(system)
    obs, action, is_first, after = tensors(sampled(system, number, 40, seed=3))
    pred, states, _ = ours.closed_loop(obs, action, is_first)

    def close(error, covariance):  # error (E, O): squares of a normal variable have variance 2 var^2
        variance = np.diag(covariance)
        np.testing.assert_array_less(
            np.abs(np.square(error).mean(0) - variance), 4.5 * variance * np.sqrt(2 / len(error))
        )

    for frames in (1, 2, 5, 15, 40):
        close((pred - after)[:, frames - 1].numpy(), ours.innovation(frames))
    rollout = ours.open_loop(obs[:, 9].double(), states[:, 8], action[:, 9:])
    for k in (1, 2, 4, 8, 16, 31):
        close((rollout.obs - after[:, 9:])[:, k - 1].numpy(), ours.prediction_covariance(10, k))


def test_errors_of_a_good_filter_cannot_be_predicted():
    """Innovations are white: uncorrelated with each other and with the actions before (within 4.5 standard errors)."""
    system = linear_system()
    obs, action, is_first, after = tensors(sampled(system, 4000, 20, seed=4))
    pred, _, _ = KalmanFilter(system).closed_loop(obs, action, is_first)
    error = (after - pred)[..., 0]
    for earlier in (error[:, 8], error[:, 17], action[:, 18, 0], action[:, 5, 0], obs[:, 18, 0], obs[:, 3, 0]):
        assert abs(np.corrcoef(error[:, 18], earlier)[0, 1]) < 4.5 / np.sqrt(4000)


def test_in_the_long_run_it_solves_the_algebraic_riccati_equation(system):
    ours = KalmanFilter(system)
    P = solve_discrete_are(system.A.T, system.C.T, system.Q, system.R)
    np.testing.assert_allclose(ours.covariances[-1], P, rtol=1e-6, atol=1e-9)  # scipy's is the less exact one
    np.testing.assert_allclose(ours.innovation(10**6), system.C @ P @ system.C.T + system.R, rtol=1e-9)
    traces = [np.trace(P) for P in ours.covariances]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(traces, traces[1:], strict=False)), (
        "from the stationary state, more frames never harm"
    )


def test_far_ahead_it_knows_no_more_than_that_nothing_is_known(system):
    """Without observations the error's covariance is that of the process, driven by noise alone."""
    far = KalmanFilter(system).prediction_covariance(20, 5000)
    driven = solve_discrete_lyapunov(system.A, system.B @ system.B.T / 3)  # what uniform actions cause
    quiet = system.start - driven
    np.testing.assert_allclose(far, system.C @ quiet @ system.C.T + system.R, rtol=1e-9)


def test_segments_with_resets_are_one_long_filter(system):
    """Three episodes of 7, 1 and 22 steps in one lane, in segments of 8; another lane that is never reset."""
    ours = KalmanFilter(system)
    obs, action, is_first, _ = tensors(sampled(system, 2, 30, seed=5))
    is_first[0, 7] = is_first[0, 8] = True
    whole, states, carry = ours.closed_loop(obs, action, is_first)
    h, parts = None, []
    for begin in range(0, 30, 8):
        here = slice(begin, begin + 8)
        pred, _, h = ours.closed_loop(obs[:, here], action[:, here], is_first[:, here], h)
        parts.append(pred)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, carry, rtol=0, atol=1e-12)
    for first, last in ((0, 7), (7, 8), (8, 30)):
        here = (slice(0, 1), slice(first, last))
        alone, _, _ = ours.closed_loop(obs[here], action[here], is_first[here])
        torch.testing.assert_close(alone, whole[here], rtol=0, atol=1e-12)
    assert states[:, -1, -1].tolist() == [22, 30], "the last entry counts an episode's frames"


def test_a_nan_in_one_episode_stays_there():
    system = linear_system()
    obs, action, is_first, _ = tensors(sampled(system, 2, 20, seed=6))
    is_first[0, 10] = True
    clean, _, _ = KalmanFilter(system).closed_loop(obs, action, is_first)
    obs[0, 5] = torch.nan
    dirty, _, _ = KalmanFilter(system).closed_loop(obs, action, is_first)
    assert dirty[0, 5:10].isnan().all()
    torch.testing.assert_close(dirty[0, 10:], clean[0, 10:], rtol=0, atol=0)
    torch.testing.assert_close(dirty[1], clean[1], rtol=0, atol=0)


@pytest.mark.parametrize("burn_in", [0, 1, 13])
def test_horizon_curves_are_the_closed_form_in_chunks(burn_in, monkeypatch):
    """Rollouts in chunks of 8 steps and groups of episodes, against x_k = A^k x + forced response, by hand."""
    system = linear_system(obs_dim=2, action_dim=2)
    ours, episodes, reach = KalmanFilter(system), sampled(system, 5, 60, seed=7), 40
    monkeypatch.setattr(rollouts, "BLOCK", 40)
    curves = horizon_curves(ours, episodes, 8, RolloutOptions((1, 5), burn_in, starts=1))
    assert curves.horizon[-1] == reach
    obs, action, is_first, after = tensors(episodes)
    x = np.zeros((5, len(system.A)))
    if burn_in:
        x = ours.closed_loop(obs[:, :burn_in], action[:, :burn_in], is_first[:, :burn_in])[2][:, :-1].numpy()
    P = ours.covariances[burn_in]
    gain = P @ system.C.T @ np.linalg.inv(system.C @ P @ system.C.T + system.R)
    x = x + (obs[:, burn_in].double().numpy() - x @ system.C.T) @ gain.T
    var = observation_moments(episodes).var
    for k in range(1, reach + 1):
        x = x @ system.A.T + action[:, burn_in + k - 1].double().numpy() @ system.B.T
        error = np.square(x @ system.C.T - after[:, burn_in + k - 1].numpy()) / var
        assert curves.nmse[k - 1] == pytest.approx(error.mean(), rel=1e-5)


def test_measured_curves_come_to_the_closed_form():
    """Over 800 episodes, through the code that measures models: within 5 standard errors."""
    system = linear_system()
    ours, episodes = KalmanFilter(system), sampled(system, 800, 64, seed=8)
    var = observation_moments(episodes).var[0]
    curve = closed_loop_curve(ours, episodes, 16, 64)
    expected = np.array([ours.innovation(n)[0, 0] for n in range(1, 65)]) / var
    assert (np.abs(curve.nmse / expected - 1) < 5 * np.sqrt(2 / 800)).all()
    opened = horizon_curves(ours, episodes, 16, RolloutOptions((1, 3), burn_in=10, starts=1))
    expected = np.array([ours.prediction_covariance(11, k)[0, 0] for k in range(1, 49)]) / var
    assert (np.abs(opened.nmse / expected - 1) < 5 * np.sqrt(2 / 800)).all()


def test_no_autoregression_beats_it():
    """With more lags a regression comes to it from above; what is left is what 32 lags do not see."""
    system = linear_system()
    train, test = sampled(system, 100, 300, seed=9), sampled(system, 60, 300, seed=10)
    floor = _errors(KalmanFilter(system), test)
    ratios = []
    for lags in (2, 8, 32):
        error = _errors(AutoRegression.fit(train, lags, lags), test)
        ratios.append(error.mean() / floor.mean())
        chance = (error - floor).mean(axis=1).std() / np.sqrt(len(error)) / floor.mean()  # between episodes
        assert error.mean() > floor.mean() - 3 * chance
    assert ratios[0] > ratios[1] > ratios[2]
    assert 1 - 3 * chance <= ratios[2] <= 1.03


def _errors(model, episodes):
    obs, action, is_first, after = tensors(episodes)
    pred, _, _ = model.closed_loop(obs, action, is_first)
    return np.square((pred - after)[:, 64:, 0].numpy())
