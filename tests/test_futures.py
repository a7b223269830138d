"""Futures that are drawn: what they are without noise, in parts, and on a process whose distribution is known."""

import numpy as np
import pytest
import torch
from conftest import over_rules
from memory import episodes_of

from worldmodel import WorldModel
from worldmodel.errors import UserError
from worldmodel.evaluation.calibration import summary, widths
from worldmodel.evaluation.rollouts import Start
from worldmodel.evaluation.scores import Scores, scores
from worldmodel.futures import futures
from worldmodel.networks import LEVELS

B, H, O, A = 3, 7, 2, 1  # noqa: E741
EXACT = {"rtol": 0, "atol": 1e-12}


def model_of(rule="gated_norm", output="gaussian", **options):
    torch.manual_seed(0)
    options = {"base_lags": 2, "latent_dim": 4, "hidden_dim": 6, "width": 8} | options
    model = WorldModel(O, A, rule=rule, output=output, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a new one is nearly its base
            parameter.add_(0.2 * torch.randn_like(parameter))
        if model.base is not None:
            model.base.weights.copy_(0.3 * torch.randn_like(model.base.weights))
    return model


def present(model, frames=5):
    """z and state of a last frame, actions and noise."""
    generator = torch.Generator().manual_seed(1)
    obs, action, ahead, noise = (
        torch.randn(B, n, width, generator=generator, dtype=torch.float64)
        for n, width in ((frames, O), (frames, A), (H, A), (H, O + 1))
    )
    is_first = torch.zeros(B, frames, dtype=torch.bool)
    z, h, _ = model.observe(obs, action, is_first)
    return z[:, -1].detach(), h[:, -2].detach(), ahead, noise


@pytest.mark.parametrize(("rule", "output"), over_rules(("gaussian", "mixture")))
def test_each_step_is_drawn_from_the_distribution_after_what_was_drawn_before(rule, output):
    """Fed to the model in closed loop, a future's observations give the distributions that it was drawn from."""
    model = model_of(rule, output)
    generator = torch.Generator().manual_seed(2)
    obs, action = (torch.randn(B, 3 + H, n, generator=generator, dtype=torch.float64) for n in (O, A))
    noise = torch.randn(B, H, O + 1, generator=generator, dtype=torch.float64)
    is_first = torch.zeros(B, 3 + H, dtype=torch.bool)
    is_first[:, 0] = True
    z, h, _ = model.observe(obs[:, :3], action[:, :3], is_first[:, :3])
    drawn = futures(model, z[:, 2], h[:, 1], action[:, 2 : 2 + H], noise)
    seen = torch.cat([obs[:, :3], drawn.obs[:, :-1]], dim=1)
    with torch.no_grad():
        pred, _, _ = model.closed_loop(seen, action[:, : seen.shape[1]], is_first[:, : seen.shape[1]])
        _, loop = model.follow(seen, action[:, : seen.shape[1]], is_first[:, : seen.shape[1]], None)
        apart = model.noise(loop.pred[:, 2:])
    torch.testing.assert_close(drawn.given_past.scale, apart.scale, **EXACT)
    torch.testing.assert_close(drawn.given_past.mean, pred[:, 2:].unsqueeze(-2) + apart.mean, **EXACT)
    torch.testing.assert_close(drawn.obs, drawn.given_past.draw(noise), **EXACT)


@pytest.mark.parametrize("base", ["linear", "last", "none"])
def test_in_parts_it_is_one_and_nothing_global_is_drawn(base):
    model = model_of(base=base)
    z, h, action, noise = present(model)
    before = torch.random.get_rng_state()
    whole, first = futures(model, z, h, action, noise), futures(model, z, h, action[:, :3], noise[:, :3])
    second = futures(model, first.z, first.h, action[:, 3:], noise[:, 3:])
    torch.testing.assert_close(torch.cat([first.obs, second.obs], dim=1), whole.obs, **EXACT)
    torch.testing.assert_close(second.h, whole.h, **EXACT)
    assert torch.equal(torch.random.get_rng_state(), before)


RHO, SIGMA = 0.9, 0.5


@pytest.fixture(scope="module")
def autoregression():
    """A process o' = rho o + sigma w, and the model that is exactly it."""
    torch.manual_seed(0)
    model = WorldModel(1, 0, output="gaussian", base_lags=1, latent_dim=2, hidden_dim=3, width=4).eval()
    with torch.no_grad():
        model.base.weights.fill_(RHO)
        model.base.scales.fill_(SIGMA)
        for last in (model.decoder[-1], model.noise.net[-1]):
            last.weight.zero_()
            last.bias.zero_()
    rng, values = np.random.default_rng(0), []
    x = rng.standard_normal(200) * SIGMA / np.sqrt(1 - RHO**2)
    for _ in range(41):
        values.append(x)
        x = RHO * x + SIGMA * rng.standard_normal(200)
    obs = np.stack(values, axis=1).reshape(-1, 1)
    return model, episodes_of(obs, np.zeros((len(obs), 0)), [40] * 200)


def test_on_a_known_process_every_score_is_what_it_must_be(autoregression):
    """The deviation k steps ahead is sigma sqrt((1 - rho^2k) / (1 - rho^2)), and its CRPS that over sqrt(pi)."""
    model, episodes = autoregression
    starts = [Start(i, 4, 32) for i in range(len(episodes))]
    found = scores(model, episodes, starts, 8, samples=64)
    deviation = episodes.obs(np.arange(len(episodes) * 41)).std()
    expected = SIGMA * np.sqrt((1 - RHO ** (2 * found.horizon)) / (1 - RHO**2)) / deviation
    assert np.mean(found.std, axis=0).squeeze(-1) == pytest.approx(expected, rel=0.03)
    whole = summary(found, model)
    assert whole.crps == pytest.approx(expected / np.sqrt(np.pi), rel=0.15)
    assert whole.crps.mean() == pytest.approx((expected / np.sqrt(np.pi)).mean(), rel=0.05)
    assert whole.nll.mean() == pytest.approx((np.log(expected) + 0.5 * np.log(2 * np.pi * np.e)).mean(), abs=0.06)
    for level, coverage in zip(LEVELS, whole.coverage, strict=True):
        assert coverage.mean() == pytest.approx(level, abs=0.03)
    assert whole.pit.sum(axis=1) == pytest.approx(1) and whole.pit.mean(axis=0) == pytest.approx(0.1, abs=0.03)
    normal = torch.special.ndtri((1 + torch.tensor(LEVELS)) / 2)
    assert widths(found)[:, :21].mean(dim=(1, 2)) == pytest.approx(normal, rel=0.1), "up to 32 steps"


def test_conformal_intervals_are_right_where_the_model_is_not(autoregression):
    """A model that is three times too sure: its own intervals miss, those that other episodes corrected do not."""
    model, episodes = autoregression
    bias = model.noise.net[-1].bias
    with torch.no_grad():
        bias.fill_(-np.log(3))
    starts = [Start(i, 4, 32) for i in range(100)]
    model.widths.copy_(widths(scores(model, episodes.select(range(100)), starts, 8, samples=32)))
    whole = summary(scores(model, episodes.select(range(100, 200)), starts, 8, samples=32), model)
    assert whole.coverage[1].mean() < 0.6
    for level, coverage in zip(LEVELS, whole.conformal, strict=True):
        assert coverage.mean() == pytest.approx(level, abs=0.04)


def test_where_few_rollouts_reach_the_multiples_of_shorter_horizons_count():
    horizon, rng = np.array([1, 2, 4]), np.random.default_rng(0)
    truth = rng.standard_normal((400, 3, 1))
    truth[3:, 2] = np.nan  # three are left, which say nothing of a 95% interval
    truth[:3, 2] = 0.0
    truth = np.concatenate([truth, np.full_like(truth, np.nan)], axis=-1)  # and an entry that never varies
    zeros = np.zeros_like(truth)
    found = widths(Scores(horizon, np.ones(2), zeros, zeros, zeros, zeros, zeros + 1, truth, zeros))
    normal = torch.special.ndtri((1 + torch.tensor(LEVELS)) / 2)
    assert found[:, -1, 0] == pytest.approx(normal, rel=0.15) and found[:, -1, 1] == pytest.approx(normal)


@pytest.mark.full
def test_a_mixture_knows_that_a_coin_decides_where_a_normal_distribution_sees_the_middle():
    """At the fourth frame an observation jumps to 1 or to -1, as a coin says that nothing showed before."""
    rng = np.random.default_rng(0)
    sides = rng.choice([-1.0, 1.0], 200)
    obs = np.concatenate([np.zeros((200, 3)), np.repeat(sides[:, None], 5, axis=1)], axis=1)
    obs += 0.02 * rng.standard_normal(obs.shape)
    batch = {
        "obs": torch.from_numpy(obs).float().unsqueeze(-1), "action": torch.zeros(200, 7, 0),
        "is_first": torch.zeros(200, 7, dtype=torch.bool), "valid": torch.ones(200, 7, dtype=torch.bool),
        "num_valid": torch.tensor(1400.0), "reward": torch.zeros(200, 7), "terminated": torch.zeros(200, 7).bool(),
    }  # fmt: skip
    batch["is_first"][:, 0] = True
    torch.manual_seed(0)
    model = WorldModel(1, 0, output="mixture", components=2, latent_dim=4, hidden_dim=12, width=16, base="last")
    model.base.scales.fill_(0.4)
    optimizer = torch.optim.AdamW(model.parameters(), 0.005)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 500)  # without it, rounding decides where it ends
    for _ in range(500):
        optimizer.zero_grad()
        model.step(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    z, h, _ = model.observe(batch["obs"][:1, :3], batch["action"][:1, :3], batch["is_first"][:1, :3])
    noise = torch.randn(1000, 4, 2, generator=torch.Generator().manual_seed(1))
    action = torch.zeros(1000, 4, 0)
    drawn = futures(model, z[:, 2].expand(1000, -1), h[:, 1].expand(1000, -1), action, noise).obs.squeeze(-1)
    assert ((drawn.abs() - 1).abs() < 0.25).double().mean() > 0.95, "one side or the other"
    assert (drawn[:, 0].sign() == drawn[:, -1].sign()).double().mean() > 0.97, "and there it stays"
    right = (drawn[:, 0] > 0).double().mean().item()
    assert abs(right - (sides > 0).mean()) < 0.06
    pred, _, _ = model.closed_loop(batch["obs"][:, :-1], batch["action"], batch["is_first"])
    assert pred[:, 2].abs().max() < 0.3, "the middle"


@pytest.mark.parametrize(
    "options", [{"objective": "latent"}, {"objective": "tokens"}, {"feedback": False}, {"images": [(8, 8, 3)]}]
)
def test_a_distribution_is_refused_where_it_is_not_defined(options):
    with pytest.raises(UserError, match="model.output gaussian is for vectors"):
        WorldModel(8 * 8 * 3, 1, options.pop("images", None), output="gaussian", **options)
