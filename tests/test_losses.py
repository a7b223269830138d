"""Losses against tables worked by hand and against numpy."""

import numpy as np
import pytest
import torch

from worldmodel import losses


def test_squared_error_and_masked_mean_by_hand():
    pred = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]])
    error = losses.squared_error(pred, torch.zeros_like(pred))
    assert error.tolist() == [[5.0, 0.0, 4.0]]
    valid = torch.tensor([[True, True, False]])
    assert losses.masked_mean(error, valid, torch.tensor(2.0)).item() == 2.5
    assert losses.masked_mean(error, torch.zeros_like(valid), torch.tensor(0.0)).item() == 0.0
    one = torch.tensor([[True, False, False]])  # the only valid step of two ranks: they average to its error
    assert (losses.masked_mean(error, one, torch.tensor(0.5)).item() + 0.0) / 2 == 5.0


def test_what_is_masked_reaches_neither_value_nor_gradient():
    error = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    loss = losses.masked_mean(error, torch.tensor([[True, False]]), torch.tensor(1.0))
    loss.backward()
    assert loss.item() == 1.0 and error.grad is not None and error.grad.tolist() == [[1.0, 0.0]]


def test_ranks_that_divide_the_lanes_average_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    error, valid = torch.rand(4, 6, generator=generator), torch.rand(4, 6, generator=generator) > 0.4
    count = valid.sum().float()
    whole = losses.masked_mean(error, valid, count)
    parts = [losses.masked_mean(error[i : i + 2], valid[i : i + 2], count / 2) for i in (0, 2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_binary_cross_entropy_by_hand():
    got = losses.binary_cross_entropy(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    assert got[0].tolist() == pytest.approx([np.log(2), 2 + np.log(1 + np.exp(-2))])


def test_rollouts_end_where_an_episode_does():
    valid = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1]]).bool()
    assert losses.valid_rollout(valid, 4).int().tolist() == [[1, 1, 0, 0, 1, 0, 0, 0]]
    assert losses.valid_rollout(valid, 1).tolist() == valid.tolist()


def test_variance_covariance_against_numpy():
    generator = torch.Generator().manual_seed(0)
    z, valid = torch.randn(5, 7, 3, generator=generator) * 0.5, torch.rand(5, 7, generator=generator) > 0.3
    covariance = np.cov(z[valid].numpy().T)
    variance, off_diagonal = losses.variance_covariance(z, valid)
    assert variance.item() == pytest.approx(np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean(), rel=1e-5)
    expected = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    assert off_diagonal.item() == pytest.approx(expected / 3, rel=1e-4)


def test_collapse_costs_and_a_gaussian_does_not():
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(64, 64, dtype=torch.bool)
    directions = torch.randn(8, 64, generator=generator)
    gaussian = torch.randn(64, 64, 8, generator=generator)
    collapsed = torch.full_like(gaussian, 0.3)
    assert losses.sigreg(gaussian, valid, directions) < 2e-3
    assert losses.sigreg(collapsed, valid, directions) > 0.1
    variance, covariance = losses.variance_covariance(gaussian, valid)
    assert variance < 0.02 and covariance < 0.02
    assert losses.variance_covariance(collapsed, valid)[0] == pytest.approx(0.99)


def test_sigreg_against_its_integral():
    """For a point mass at x the statistic of a direction is the integral of |exp(itx) - exp(-t^2/2)|^2 exp(-t^2/2)."""
    x = 0.7
    t = np.linspace(-12, 12, 200_001)
    gauss = np.exp(-(t**2) / 2)
    expected = np.trapezoid(np.abs(np.exp(1j * t * x) - gauss) ** 2 * gauss, t)
    z = torch.full((2, 3, 1), x, dtype=torch.float64)
    got = losses.sigreg(z, torch.ones(2, 3, dtype=torch.bool), torch.ones(1, 1, dtype=torch.float64))
    assert got.item() == pytest.approx(expected, rel=2e-3)


def test_padding_does_not_count_in_anti_collapse_terms():
    generator = torch.Generator().manual_seed(0)
    z, directions = torch.randn(4, 6, 3, generator=generator), torch.randn(3, 16, generator=generator)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[2:] = False
    poisoned = z.clone()
    poisoned[2:] = 1e3
    assert losses.variance_covariance(z, valid) == losses.variance_covariance(poisoned, valid)
    assert losses.sigreg(z, valid, directions) == losses.sigreg(poisoned, valid, directions)
