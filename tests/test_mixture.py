"""Mixtures of normal distributions, against scipy and against many draws."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from worldmodel.mixture import Mixture, MixtureHead

WEIGHT, MEAN, SCALE = [0.2, 0.5, 0.3], [-1.0, 0.4, 3.0], [0.3, 1.0, 0.1]
X = [-1.2, 0.0, 2.9, 7.0]


@pytest.fixture
def mixture():
    parts = (torch.tensor(values, dtype=torch.float64) for values in (WEIGHT, MEAN, SCALE))
    weight, mean, scale = parts
    return Mixture(weight.log(), mean.unsqueeze(-1), scale.unsqueeze(-1))


def cdf(x):
    return sum(w * norm.cdf(x, m, s) for w, m, s in zip(WEIGHT, MEAN, SCALE, strict=True))


@pytest.mark.parametrize("x", X)
def test_density_distribution_and_crps_are_those_of_the_definition(mixture, x):
    at = torch.tensor([x], dtype=torch.float64)
    density = sum(w * norm.pdf(x, m, s) for w, m, s in zip(WEIGHT, MEAN, SCALE, strict=True))
    assert mixture.entry_log_prob(at).item() == pytest.approx(np.log(density), rel=1e-12)
    assert mixture.cdf(at).item() == pytest.approx(cdf(x), abs=1e-14)
    below, _ = quad(lambda y: cdf(y) ** 2, -12, x, limit=200, points=[p for p in MEAN if p < x] or None)
    above, _ = quad(lambda y: (1 - cdf(y)) ** 2, x, 18, limit=200, points=[p for p in MEAN if p > x] or None)
    assert mixture.crps(at).item() == pytest.approx(below + above, rel=1e-6)


def test_moments_and_draws_are_those_of_the_components(mixture):
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = Mixture(*(part.expand(200_000, *part.shape) for part in mixture)).draw(noise).squeeze(-1)
    mean, std = (value.item() for value in mixture.moments())
    assert mean == pytest.approx(np.dot(WEIGHT, MEAN), abs=1e-12)
    square = np.dot(WEIGHT, np.square(SCALE) + np.square(MEAN))
    assert std == pytest.approx(np.sqrt(square - mean**2), abs=1e-12)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.02) and drawn.std().item() == pytest.approx(std, rel=0.01)
    for x in X:
        assert (drawn < x).double().mean().item() == pytest.approx(cdf(x), abs=0.005)


def test_entries_of_a_component_go_together():
    """Two components at opposite corners: what is drawn is one corner or the other, never a mix."""
    mean = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    mixture = Mixture(torch.tensor([0.5, 0.5]).log(), mean, torch.full((2, 2), 0.1))
    noise = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1))
    drawn = Mixture(*(part.expand(1000, *part.shape) for part in mixture)).draw(noise)
    assert (drawn[:, 0] * drawn[:, 1] > 0).all()
    assert mixture.log_prob(torch.tensor([5.0, 5.0])) > mixture.log_prob(torch.tensor([5.0, -5.0])) + 100


@pytest.mark.parametrize("components", [1, 3])
def test_a_new_head_is_about_the_bases_own_error_and_never_degenerate(components):
    torch.manual_seed(0)
    head = MixtureHead(4, 2, 8, components)
    mean, std = head(torch.randn(50, 4)).moments()
    assert (std > 0.5).all() and (std < 3).all() and (components > 1 or not mean.any())
    with torch.no_grad():
        head.net[-1].bias.fill_(-1e6)
        low = head(torch.zeros(1, 4)).scale
        head.net[-1].bias.fill_(1e6)
        high = head(torch.zeros(1, 4)).scale
    assert (low > 1e-4).all() and high.isfinite().all()


def test_beta_weights_gradients_and_changes_no_value():
    """At beta 1 the gradient of the log deviation is that of (std^2 - error^2) / 2: a squared error's size."""
    torch.manual_seed(0)
    head, pred = MixtureHead(4, 2, 8, 1), torch.randn(6, 4)
    error = torch.randn(6, 2)
    plain, weighted = head(pred), head(pred, beta=1.0)
    assert torch.equal(plain.scale, weighted.scale)

    def gradient(mixture):
        (-mixture.log_prob(error)).sum().backward()
        found = head.net[-1].bias.grad.clone()
        head.zero_grad()
        return found

    scale = plain.scale.detach().squeeze(-2)
    assert gradient(plain) == pytest.approx((1 - (error / scale).square()).sum(dim=0), rel=0.01)
    assert gradient(weighted) == pytest.approx((scale.square() - error.square()).sum(dim=0), rel=0.01)
