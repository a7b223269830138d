"""Returns and advantages against tables worked by hand."""

import pytest
import torch

from worldmodel.returns import gae, lambda_returns

# discount 0.5, trace 0.5 throughout: discount * trace is 0.25
REWARD = [1.0, 2.0, 4.0]
VALUE = [8.0, 6.0, 4.0, 2.0]


def row(*numbers, dtype=torch.float64):
    return torch.tensor([numbers], dtype=dtype)


def by_hand(proceeds=(1, 1, 1), valid=(1, 1, 1), function=gae):
    flags = row(*proceeds, dtype=torch.bool), row(*valid, dtype=torch.bool)
    if function is gae:
        return gae(row(*REWARD), row(*VALUE), *flags, 0.5, 0.5)[0].tolist()
    return lambda_returns(row(*REWARD), row(*VALUE), flags[0], 0.5, 0.5, flags[1])[0].tolist()


def test_within_an_episode():
    # d_2 = 4 + 1 - 4 = 1, d_1 = 2 + 2 - 6 = -2, d_0 = 1 + 3 - 8 = -4; A_2 = 1, A_1 = -2 + .25, A_0 = -4 + .25 A_1
    assert by_hand() == [-4.4375, -1.75, 1.0]
    # G_2 = 4 + .5 * 2 = 5, G_1 = 2 + .5 (.5 * 4 + .5 * 5) = 4.25, G_0 = 1 + .5 (.5 * 6 + .5 * 4.25) = 3.5625
    assert by_hand(function=lambda_returns) == [3.5625, 4.25, 5.0]


def test_a_terminal_state_has_no_value_and_a_cut_off_episode_has_one():
    # the episode ends with step 0; step 1 only resets. Terminal: A_0 = 1 - 8. Cut off: A_0 = 1 + .5 * 6 - 8
    assert by_hand(proceeds=(0, 1, 1), valid=(1, 0, 1)) == [-7.0, 0.0, 1.0]
    assert by_hand(proceeds=(1, 1, 1), valid=(1, 0, 1)) == [-4.0, 0.0, 1.0]
    assert by_hand((0, 1, 1), (1, 0, 1), lambda_returns) == [1.0, 6.0, 5.0]
    assert by_hand((1, 1, 1), (1, 0, 1), lambda_returns) == [4.0, 6.0, 5.0]
    # ... with the last step of the segment
    assert by_hand(proceeds=(1, 1, 0)) == [-4 + 0.25 * -2.0, -2.0, 0.0]


def test_nothing_in_a_step_that_is_not_valid_counts():
    reward, value = row(*REWARD), row(*VALUE)
    reward[0, 1] = float("nan")
    valid, proceeds = row(1, 0, 1, dtype=torch.bool), row(1, 1, 1, dtype=torch.bool)
    assert gae(reward, value, proceeds, valid, 0.5, 0.5)[0].tolist() == [-4.0, 0.0, 1.0]


def test_the_ends_of_the_trace():
    reward, value = torch.rand(3, 7, dtype=torch.float64), torch.rand(3, 8, dtype=torch.float64)
    on = torch.ones(3, 7, dtype=torch.bool)
    one_step = reward + 0.9 * value[:, 1:]
    torch.testing.assert_close(lambda_returns(reward, value, on, 0.9, 0.0), one_step, rtol=0, atol=1e-14)
    powers = 0.9 ** torch.arange(7, dtype=torch.float64)
    whole = (reward * powers).sum(dim=1) + 0.9**7 * value[:, -1]
    torch.testing.assert_close(lambda_returns(reward, value, on, 0.9, 1.0)[:, 0], whole, rtol=1e-12, atol=0)


def test_a_probability_of_going_on_is_a_discount_and_has_a_gradient():
    proceeds = torch.full((1, 3), 0.5, dtype=torch.float64, requires_grad=True)
    got = lambda_returns(row(*REWARD), row(*VALUE), proceeds, 1.0, 0.5)
    assert got[0].tolist() == [3.5625, 4.25, 5.0]
    got[0, 2].backward()
    assert proceeds.grad is not None and proceeds.grad[0].tolist() == [0.0, 0.0, pytest.approx(2.0)]
