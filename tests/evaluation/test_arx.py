"""How a model's base is fitted: its coefficients, its units, its number of lags, and what it knows far ahead."""

import numpy as np
import pytest
import torch
from evaluation.linear_data import sampled, stacked
from memory import episodes_of

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.base import KNOTS, PER_OCTAVE, LinearBase
from worldmodel.data.statistics import observation_moments
from worldmodel.envs.linear import linear_system
from worldmodel.evaluation.arx import fitted_base
from worldmodel.evaluation.baselines import AutoRegression
from worldmodel.evaluation.shrinkage import _factors, fit_shrinkage
from worldmodel.nets import Normalizer

T = 8


@pytest.fixture(scope="module")
def train():
    return sampled(linear_system(damping=0.1), 40, 200, seed=0)


def norms(episodes):
    obs, action = Normalizer(episodes.layout.obs_dim), Normalizer(episodes.layout.action_dim)
    obs.fit(*(torch.as_tensor(x).float() for x in observation_moments(episodes)))
    action.fit(torch.tensor([0.1]), torch.tensor([0.5]))
    return obs, action


def fitted(episodes, kind="linear", lags=None) -> tuple[LinearBase, Normalizer, Normalizer]:
    obs, action = norms(episodes)
    return fitted_base(episodes, kind, lags, T, obs, action), obs, action


def predicted(base, obs_norm, action_norm, episodes):
    """In the data's units, and the truth (E, T, O)."""
    obs, action = map(torch.from_numpy, stacked(episodes))
    is_first = torch.zeros(obs.shape[:2], dtype=torch.bool)[:, :-1]
    is_first[:, 0] = True
    _, line, _ = base.observe(obs_norm(obs[:, :-1]), action_norm(action[:, :-1]), is_first, None)
    return obs_norm.inverse(line.pred), obs[:, 1:], line.scale * obs_norm.scale


@pytest.mark.parametrize("lags", [1, 4])
def test_it_predicts_as_the_autoregression_does_from_an_episodes_first_frame_on(train, lags):
    pred, truth, scale = predicted(*fitted(train, lags=lags), train)
    obs, action = map(torch.from_numpy, stacked(train))
    is_first = torch.zeros(obs.shape[:2], dtype=torch.bool)[:, :-1]
    is_first[:, 0] = True
    expected, _, _ = AutoRegression.fit(train, lags, T).closed_loop(obs[:, :-1], action[:, :-1], is_first)
    torch.testing.assert_close(pred, expected.float(), rtol=0, atol=1e-4)
    error = (pred - truth)[:, lags:].square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(scale[0, lags:].mean(dim=0), error, rtol=0.05, atol=0)
    first = (pred - truth)[:, 0].square().mean(dim=0).sqrt()
    torch.testing.assert_close(scale[0, 0], first, rtol=0.2, atol=0)


def test_last_keeps_the_last_observation(train):
    base, obs_norm, action_norm = fitted(train, "last")
    pred, truth, _ = predicted(base, obs_norm, action_norm, train)
    before = torch.from_numpy(stacked(train)[0])[:, :-1]
    torch.testing.assert_close(pred, before, rtol=0, atol=1e-5)
    assert base.lags == 1


def test_noise_wants_many_lags_and_a_mechanism_two(train, pendulum_data):
    """Through noise a line sees further than a rule; what two frames of a pendulum leave is for the rule to learn."""
    assert fitted(train)[0].lags > 2
    data = EpisodeDataModule(pendulum_data, steps=T)
    model = WorldModel(2, 1)
    for name in ("obs", "action"):
        getattr(model, f"{name}_norm").fit(*data.statistics[name])
    assert fitted_base(data.splits["train"], "linear", None, T, model.obs_norm, model.action_norm).lags == 2


def test_its_drift_is_its_error_when_it_is_rolled_out_alone():
    """A walk: after k steps the last frame is off by the root of k; no further than the mean, and constant after T."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((60, 101)), axis=1).reshape(-1, 1)
    base, obs_norm, _ = fitted(episodes_of(walk, np.zeros_like(walk), [100] * 60), "last")
    ahead = np.minimum((2 ** (np.arange(KNOTS) / PER_OCTAVE)).round(), T)
    found = base.drifts[:, 0].numpy() * float(obs_norm.scale)
    np.testing.assert_allclose(found, np.sqrt(ahead), rtol=0.1)
    assert (
        float(fitted(episodes_of(0 * walk + rng.standard_normal(walk.shape), 0 * walk, [100] * 60))[0].drifts.max())
        <= 1
    )


def test_the_shrinkage_is_the_best_factor_so_far_ahead():
    """<o, o^> / <o^, o^>: 1 of the truth, 1/2 of twice the truth, 0 of what is unrelated; and it never rises again."""
    own = torch.ones(2, 3, 100, 4)
    own[1, ..., 1], own[0, ..., 2] = 2.0, -1.0
    own[0, ..., 3] = torch.where(torch.arange(100) < 10, 1.0, 0.25)
    own[0, :, 50:, 3] = 0.9
    factors = _factors(own)
    assert torch.equal(factors[:, :3], torch.tensor([1.0, 0.5, 0.0]).expand(KNOTS, 3).double())
    assert factors[0, 3] == 1 and factors[-1, 3] == factors[:, 3].min() == 0.25


def test_a_factor_that_is_chance_is_none():
    """Products of two episodes that contradict each other: 0.1 in the mean, with a standard error of 0.4 or 0.05."""
    own = torch.ones(2, 2, 10, 2)
    own[0, :, :, 0] = torch.tensor([0.1 - 0.4 * 2**0.5, 0.1 + 0.4 * 2**0.5]).unsqueeze(-1)
    own[0, :, :, 1] = torch.tensor([0.1 - 0.05 * 2**0.5, 0.1 + 0.05 * 2**0.5]).unsqueeze(-1)
    factors = _factors(own)
    assert (factors[:, 0] == 0).all()
    torch.testing.assert_close(factors[:, 1], torch.full((KNOTS,), 0.1 * (1 - 0.25)).double())


@torch.no_grad()
def test_no_open_loop_is_worse_than_the_mean_where_the_shrinkage_was_measured(train):
    """With a rule that is not trained, and a line that was made to explode."""
    torch.manual_seed(0)
    model = WorldModel(1, 1, latent_dim=4, hidden_dim=6, width=8).eval()
    model.obs_norm, model.action_norm = norms(train)
    model.base = fitted_base(train, "linear", 1, T, model.obs_norm, model.action_norm)
    model.base.weights.mul_(1.5)
    fit_shrinkage(model, train, T)
    obs, action = map(torch.from_numpy, stacked(train))
    z, h = model.encode(obs[:, 0]), torch.zeros(len(obs), 6)
    error = (model.open_loop(z, h, action[:, :-1]).obs - obs[:, 1:]).square().mean(dim=(0, 2))
    mean = (model.obs_norm.mean - obs[:, 1:]).square().mean(dim=(0, 2))
    assert float((error / mean)[50:].mean()) < 1.05
    model.base.shrinkage.fill_(1)
    error = (model.open_loop(z, h, action[:, :-1]).obs - obs[:, 1:]).square().mean(dim=(0, 2))
    assert float((error / mean)[50:].mean()) > 2, "without it"
