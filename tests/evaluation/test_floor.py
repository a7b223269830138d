"""The Kalman filter's own distribution, in the scores that a model's futures get."""

import math

import numpy as np
import pytest
import torch

from tests.evaluation.linear_data import sampled
from worldmodel import WorldModel
from worldmodel.envs.linear import linear_system
from worldmodel.evaluation.calibration import rollouts_of, summary
from worldmodel.evaluation.floor import filtered
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.scores import scores


@pytest.fixture(scope="module")
def scored():
    """A new model, its scores and the filter's on the same rollouts."""
    system = linear_system(obs_dim=2)
    whole, kalman = sampled(system, 64, 60, seed=0), KalmanFilter(system)
    torch.manual_seed(0)
    model = WorldModel(2, 1, output="gaussian", latent_dim=2, hidden_dim=3, width=4).eval()
    episodes, starts = rollouts_of(whole, 8)
    found = scores(model, episodes, starts, 8, 8)
    return model, found, filtered(kalman, episodes, starts, 8, found), kalman, starts


def test_its_scores_are_those_of_its_covariances(scored):
    _, found, floor, kalman, starts = scored
    for i in (0, 7):
        for k in (0, 3, 9):
            covariance = kalman.prediction_covariance(starts[i].frame + 1, int(found.horizon[k]))
            np.testing.assert_allclose(floor.std[i, k] * found.unit, np.sqrt(covariance.diagonal()), rtol=1e-9)
    assert np.array_equal(np.isnan(floor.nll), np.isnan(found.nll)) and np.isnan(found.nll).any()
    pit = floor.pit[~np.isnan(floor.pit)]
    assert (np.abs(pit - 0.5) <= 0.45).mean() == pytest.approx(0.9, abs=0.02)
    assert np.nanmean(floor.crps / floor.std) == pytest.approx(1 / math.sqrt(math.pi), rel=0.04)
    assert np.nanmean(floor.nll - np.log(floor.std)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.04)
    assert np.nanmean(np.square((floor.truth - floor.mean) / floor.std)) == pytest.approx(1, abs=0.08)


def test_a_model_loses_to_it_and_it_does_not_to_itself(scored):
    model, found, floor, *_ = scored
    regret = summary(found, model, floor).regret
    assert (regret["nmse_regret"] > 1).all() and (regret["crps_regret"] > 1).all() and (regret["nll_regret"] > 0).all()
    own = summary(floor, model, floor)
    for name, nothing in {"nmse_regret": 1, "crps_regret": 1, "nll_regret": 0}.items():
        np.testing.assert_allclose(own.regret[name], nothing, atol=1e-12)
    assert own.at([8, 16, 3])["crps_regret"] == {8: 1, 16: 1, 3: 1} and "rollout/nll_regret@8" in own.metrics([8])
    assert not summary(found, model).regret
