"""Two-hot numbers: against tables by hand, and through all that a model's rewards go through."""

import numpy as np
import pytest
import torch

from worldmodel.errors import UserError
from worldmodel.export import load_exported, write_export
from worldmodel.model import Model
from worldmodel.two_hot import BINS, Point, TwoHot, symexp, symlog

SIZES = {"obs_dim": 3, "action_dim": 2, "latent_dim": 4, "hidden_dim": 12, "width": 8}


def form_of(*bins: float) -> TwoHot:
    form = TwoHot().double()
    form.bins = torch.tensor(bins, dtype=torch.float64)
    return form


def test_symlog_and_symexp():
    x = torch.tensor([0.0, np.e - 1, 1 - np.e, 1e-9, -1e8], dtype=torch.float64)
    torch.testing.assert_close(symlog(x)[:4], torch.tensor([0.0, 1, -1, 1e-9], dtype=torch.float64), atol=0, rtol=1e-9)
    torch.testing.assert_close(symexp(symlog(x)), x, atol=0, rtol=1e-12)


def test_a_number_is_shared_out_between_the_bins_beside_it():
    """A table by hand, of unevenly spaced bins; what lies beyond the ends counts as the end."""
    x = torch.tensor([-1.0, 0.0, 0.25, 1.0, 2.5, 3.0, 11.0, 99.0, -7.0], dtype=torch.float64)
    expected = [
        [1, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [0.375, 0.625, 0, 0],
        [0, 1, 0, 0],
        [0, 0.25, 0.75, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [1, 0, 0, 0],
    ]
    form = form_of(-1, 1, 3, 11)
    torch.testing.assert_close(form.encode(x), torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0)
    assert form.expected(torch.tensor([0.0, 0, 0, 0])).item() == pytest.approx(3.5)
    halves = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert form.expected(halves.log()).item() == pytest.approx(-0.5 + 0.25 + 0.375 + 1.375)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_encoded_is_the_mean_of_its_bins(dtype):
    form = TwoHot().to(dtype)
    form.fit(-16.3, 120.0, 0.01)
    x = torch.linspace(-16.3, 120, 4001, dtype=dtype)
    weights = form.encode(x)
    assert weights.dtype == dtype and (weights >= 0).all() and ((weights > 0).sum(dim=-1) <= 2).all()
    torch.testing.assert_close((weights * form.bins).sum(dim=-1), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(form.expected(weights.log().clamp(min=-80)), x, rtol=1e-5, atol=1e-4)


def test_bins_reach_as_far_as_the_data_and_are_finest_around_zero():
    form = TwoHot().double()
    form.fit(-3.0, 500.0, 0.1)
    bins, gaps = form.bins, form.bins.diff()
    assert len(bins) == BINS and bins[0].item() == pytest.approx(-3) and bins[-1].item() == pytest.approx(500)
    assert (gaps > 0).all() and gaps.min() < 0.02 and gaps[bins[:-1].abs().argmin()] < 2 * gaps.min()
    steps = symlog(bins / 0.1).diff()
    torch.testing.assert_close(steps, steps.mean().expand(BINS - 1), rtol=1e-4, atol=0)
    form.fit(0.0, 0.0, 2.0)  # a reward that never varies
    assert bins[0].item() == pytest.approx(-2) and bins[-1].item() == pytest.approx(2)


def test_the_loss_is_a_cross_entropy_whose_gradient_no_error_drowns():
    """By hand: the gradient is what is predicted minus the target's shares; a target gets none."""
    form, logits = form_of(-1, 1, 3, 11), torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2.5, 11.0], dtype=torch.float64, requires_grad=True)
    loss = form.loss(logits, target)
    torch.testing.assert_close(loss, torch.full((2,), np.log(4), dtype=torch.float64))
    loss.sum().backward()
    expected = torch.tensor([[0.25, 0, -0.5, 0.25], [0.25, 0.25, 0.25, -0.75]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected)
    assert target.grad is None


def test_where_the_loss_is_least_the_mean_is_the_targets_mean():
    """A reward of 9 one time in ten: the median is 0, the mean 0.9, and symlog's mean would be symexp(0.23) = 0.26."""
    form, logits = form_of(-1, 0, 1, 3, 20), torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([9.0] + 9 * [0.0], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = form.loss(logits.expand(10, 5), target).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert form.expected(logits).item() == pytest.approx(0.9, abs=1e-3)


def test_a_point_is_its_output_and_its_squared_error():
    output, target = torch.tensor([[2.0], [-1.0]]), torch.tensor([0.5, 0.0])
    assert torch.equal(Point().expected(output), output.squeeze(-1))
    assert torch.equal(Point().loss(output, target), torch.tensor([2.25, 1.0]))
    assert "reward_form" not in " ".join(Model(**SIZES).state_dict()), "no checkpoint of such models changes"


def made(**arguments) -> Model:
    torch.manual_seed(0)
    model = Model(**SIZES, reward_head="two_hot", value_discount=0.9, **arguments).eval()
    model.reward_norm.fit(torch.tensor([-0.5]), torch.tensor([2.0]))
    model.fit_rewards(-4.5, 99.5, 0.2)
    return model


def test_rewards_and_values_are_in_the_units_of_the_data():
    model = made()
    assert float(model.reward_form.bins[0]) == pytest.approx(-2) and float(model.reward_form.bins[-1]) == pytest.approx(
        50
    )
    assert float(model.value_form.bins[0]) == pytest.approx(-2.25)
    assert float(model.value_form.bins[-1]) == pytest.approx(49.75)
    for head in (model.heads, model.value_head):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.constant_(head[-1].bias, -99.0)
    h = torch.randn(5, 12)
    model.heads[-1].bias.data[-2] = 0.0  # the highest reward's bin; the continue logit is behind it
    model.value_head[-1].bias.data[0] = 0.0
    reward, continues = model.expected(h)
    torch.testing.assert_close(reward, torch.full((5,), 99.5))
    torch.testing.assert_close(model.value(h), torch.full((5,), -4.5 / (1 - 0.9)))
    assert (continues < 1e-9).all()


def test_members_agree_on_the_mean_of_their_numbers():
    """Not on the number of their mean logits, which is a geometric mean."""
    model = made(members=3, base="none")
    h = torch.randn(7, 3 * 12)
    each = [model.expected(h.unflatten(-1, (3, 12))[:, k].repeat(1, 3))[0] for k in range(3)]
    torch.testing.assert_close(model.expected(h)[0], torch.stack(each).mean(dim=0))


@torch.no_grad()
def test_an_export_gives_the_models_rewards(tmp_path):
    model = made()
    arguments = {**SIZES, "reward_head": "two_hot", "value_discount": 0.9}
    again = write_export(tmp_path / "out", arguments, model.state_dict(), {}, "a test")
    z, h, actions = model.encode(torch.randn(4, 3)), torch.randn(4, 12), torch.randn(4, 6, 2)
    for other in (again, load_exported(tmp_path / "out")):
        ours, theirs = model.outcome(z, h, actions), other.outcome(z, h, actions)
        assert torch.equal(ours.reward, theirs.reward) and torch.equal(model.value(ours.h), other.value(theirs.h))


def test_tokens_have_no_rewards():
    with pytest.raises(UserError, match="reward_head two_hot is not for tokens"):
        Model(**SIZES, objective="tokens", reward_head="two_hot")
