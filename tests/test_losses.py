"""Losses and returns against tables worked by hand and against numpy."""

import math

import numpy as np
import pytest
import torch

from worldmodel import losses


def row(*numbers, dtype=torch.float64):
    return torch.tensor([numbers], dtype=dtype)


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


# --- returns and advantages ----------------------------------------------------------------------------------------

# discount 0.5, lambda 0.5 throughout: discount * lambda is 0.25
REWARD = [1.0, 2.0, 4.0]
VALUE = [8.0, 6.0, 4.0, 2.0]


def by_hand(continues=(1, 1, 1), valid=(1, 1, 1), function=losses.gae):
    flags = row(*continues, dtype=torch.bool), row(*valid, dtype=torch.bool)
    if function is losses.gae:
        return losses.gae(row(*REWARD), row(*VALUE), *flags, 0.5, 0.5)[0].tolist()
    return losses.lambda_returns(row(*REWARD), row(*VALUE), flags[0], 0.5, 0.5, flags[1])[0].tolist()


def test_within_an_episode():
    # d_2 = 4 + 1 - 4 = 1, d_1 = 2 + 2 - 6 = -2, d_0 = 1 + 3 - 8 = -4; A_2 = 1, A_1 = -2 + .25, A_0 = -4 + .25 A_1
    assert by_hand() == [-4.4375, -1.75, 1.0]
    # G_2 = 4 + .5 * 2 = 5, G_1 = 2 + .5 (.5 * 4 + .5 * 5) = 4.25, G_0 = 1 + .5 (.5 * 6 + .5 * 4.25) = 3.5625
    assert by_hand(function=losses.lambda_returns) == [3.5625, 4.25, 5.0]


def test_a_terminal_state_has_no_value_and_a_cut_off_episode_has_one():
    # the episode ends with step 0; step 1 only resets. Terminal: A_0 = 1 - 8. Cut off: A_0 = 1 + .5 * 6 - 8
    assert by_hand(continues=(0, 1, 1), valid=(1, 0, 1)) == [-7.0, 0.0, 1.0]
    assert by_hand(continues=(1, 1, 1), valid=(1, 0, 1)) == [-4.0, 0.0, 1.0]
    assert by_hand((0, 1, 1), (1, 0, 1), losses.lambda_returns) == [1.0, 6.0, 5.0]
    assert by_hand((1, 1, 1), (1, 0, 1), losses.lambda_returns) == [4.0, 6.0, 5.0]
    # ... with the last step of the segment
    assert by_hand(continues=(1, 1, 0)) == [-4 + 0.25 * -2.0, -2.0, 0.0]


def test_nothing_in_a_step_that_is_not_valid_counts():
    reward, value = row(*REWARD), row(*VALUE)
    reward[0, 1] = float("nan")
    valid, continues = row(1, 0, 1, dtype=torch.bool), row(1, 1, 1, dtype=torch.bool)
    assert losses.gae(reward, value, continues, valid, 0.5, 0.5)[0].tolist() == [-4.0, 0.0, 1.0]


def test_the_ends_of_lambda():
    reward, value = torch.rand(3, 7, dtype=torch.float64), torch.rand(3, 8, dtype=torch.float64)
    on = torch.ones(3, 7, dtype=torch.bool)
    one_step = reward + 0.9 * value[:, 1:]
    torch.testing.assert_close(losses.lambda_returns(reward, value, on, 0.9, 0.0), one_step, rtol=0, atol=1e-14)
    powers = 0.9 ** torch.arange(7, dtype=torch.float64)
    whole = (reward * powers).sum(dim=1) + 0.9**7 * value[:, -1]
    torch.testing.assert_close(losses.lambda_returns(reward, value, on, 0.9, 1.0)[:, 0], whole, rtol=1e-12, atol=0)


def test_a_continue_probability_is_a_discount_and_has_a_gradient():
    continues = torch.full((1, 3), 0.5, dtype=torch.float64, requires_grad=True)
    got = losses.lambda_returns(row(*REWARD), row(*VALUE), continues, 1.0, 0.5)
    assert got[0].tolist() == [3.5625, 4.25, 5.0]
    got[0, 2].backward()
    assert continues.grad is not None and continues.grad[0].tolist() == [0.0, 0.0, pytest.approx(2.0)]


# --- PPO -----------------------------------------------------------------------------------------------------------

RATIOS = (0.5, 0.9, 1.0, 1.1, 2.0)


def logs(*ratios):
    """Log-probabilities whose ratio to 0 is this."""
    return row(*map(math.log, ratios)).requires_grad_()


@pytest.mark.parametrize(
    ("advantage", "values", "slopes"),
    [
        # min(r A, clip(r, .8, 1.2) A): a good action is not made likelier than 1.2, a bad one not less likely than 0.8
        (2.0, [-1.0, -1.8, -2.0, -2.2, -2.4], [-1.0, -1.8, -2.0, -2.2, 0.0]),
        (-2.0, [1.6, 1.8, 2.0, 2.2, 4.0], [0.0, 1.8, 2.0, 2.2, 4.0]),
    ],
)
def test_the_clipped_surrogate(advantage, values, slopes):
    log_prob = logs(*RATIOS)
    got = losses.clipped_surrogate(log_prob, torch.zeros(1, 5).double(), torch.full((1, 5), advantage).double(), 0.2)
    assert got[0].tolist() == pytest.approx(values)
    got.sum().backward()
    assert log_prob.grad is not None and log_prob.grad[0].tolist() == pytest.approx(slopes)  # d/d log r = r dL/dr


def test_the_clipped_value_loss():
    # v_old 0, target 1, clip .2: v = .1 -> .81 / 2; v = .5 -> near .2, the worse error .64 / 2, no gradient;
    # v = -.5 -> 2.25 / 2 (its own is worse); v = 1.5 -> near .2 is worse: .64 / 2
    value = row(0.1, 0.5, -0.5, 1.5).requires_grad_()
    got = losses.clipped_value_loss(value, row(0, 0, 0, 0), row(1, 1, 1, 1), 0.2)
    assert got[0].tolist() == pytest.approx([0.405, 0.32, 1.125, 0.32])
    got.sum().backward()
    assert value.grad is not None and value.grad[0].tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.0])
    assert losses.clipped_value_loss(value, value, row(1, 1, 1, 1), None)[0].tolist() == pytest.approx(
        [0.405, 0.125, 1.125, 0.125]
    )


def test_kl_and_what_is_beyond_the_clip():
    log_prob, old = logs(*RATIOS), torch.zeros(1, 5).double()
    assert losses.approximate_kl(log_prob, old)[0].tolist() == pytest.approx([r - 1 - math.log(r) for r in RATIOS])
    assert losses.beyond_clip(log_prob, old, 0.2)[0].tolist() == [1, 0, 0, 0, 1]
    # of a policy that moved from (.5, .5) to (.6, .4): the mean over the old one's actions is the divergence
    both = losses.approximate_kl(row(0.6, 0.4).log(), row(0.5, 0.5).log())
    assert both.mean().item() == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4))


@pytest.mark.parametrize("steps", [25, 7])
def test_a_short_last_chunk_weighs_by_its_steps(steps):
    error, valid = torch.rand(1, steps).double(), torch.ones(1, steps, dtype=torch.bool)
    padding = -steps % 8
    chunks = [torch.nn.functional.pad(x, (0, padding)).reshape(-1, 8) for x in (error, valid)]
    assert len(chunks[0]) == -(-steps // 8)
    mean = losses.masked_mean(chunks[0], chunks[1], chunks[1].sum())
    assert mean.item() == pytest.approx(error.mean().item(), rel=1e-14)
