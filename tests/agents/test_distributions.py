"""Distributions against torch.distributions, and actions against what recorded ones are turned into."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.agents.distributions import ActionSpace, Categorical, Gaussian
from worldmodel.data.spaces import describe, features
from worldmodel.errors import UserError

SPACES = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiBinary(3),
    spaces.Box(-2, 2, (1,), np.float32),
    spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32)),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    spaces.Box(0, np.inf, (2,), np.float32),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_drawn_is_of_the_space_and_its_features_are_those_of_a_recording(space):
    actions = ActionSpace(describe(space))
    outputs = torch.randn(50, 2, actions.num_outputs, generator=torch.Generator().manual_seed(0))
    drawn = actions.distribution(outputs).sample(torch.Generator().manual_seed(1))
    taken = actions.to_env(drawn).numpy().astype(space.dtype)
    assert taken.shape == (50, 2, *space.shape)
    flat = taken.reshape(100, *space.shape)
    assert all(space.contains(action if space.shape else space.dtype.type(action)) for action in flat)
    expected = features(flat, describe(space)).reshape(50, 2, -1)
    assert expected.shape[-1] == actions.dim
    np.testing.assert_allclose(actions.features(drawn).numpy(), expected, rtol=1e-6)


def test_a_box_s_bounds_are_one_of_the_normalised_scale():
    actions = ActionSpace(describe(spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))))
    assert actions.to_env(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-3.0, 0.5]])).tolist() == [[0, 5], [1, 10], [-1, 7.5]]


def test_categorical_is_torch_s():
    logits = torch.randn(6, 5, dtype=torch.float64)
    ours = Categorical(logits, [2, 3])
    theirs = [torch.distributions.Categorical(logits=part) for part in logits.split([2, 3], dim=-1)]
    action = torch.stack([part.sample() for part in theirs], dim=-1)
    expected = sum(part.log_prob(action[:, i]) for i, part in enumerate(theirs))
    torch.testing.assert_close(ours.log_prob(action), expected)
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in theirs))
    assert torch.equal(ours.mode, torch.stack([part.probs.argmax(dim=-1) for part in theirs], dim=-1))


def test_gaussian_is_torch_s():
    mean, log_std = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    ours, theirs = Gaussian(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    action = theirs.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(dim=-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(dim=-1))


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.6, 0.0, 0.3])
    drawn = Categorical(probabilities.log().expand(40000, 4), [4]).sample(torch.Generator().manual_seed(0))
    share = torch.bincount(drawn[:, 0], minlength=4) / 40000
    assert share[2] == 0 and (share - probabilities).abs().max() < 4 * 0.5 / 200
    noise = Gaussian(torch.full((40000, 1), 3.0), torch.zeros(1)).sample(torch.Generator().manual_seed(0))
    assert abs(noise.mean() - 3) < 4 / 200 and abs(noise.std() - 1) < 0.02


def test_what_is_masked_has_no_probability_no_gradient_and_is_never_drawn():
    logits = torch.tensor([[5.0, 1.0, 90.0, 0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, False]])
    masked = Categorical(logits, [3, 2], mask)
    assert [part.exp()[0].tolist()[-1] for part in masked.log_probs] == [0.0, 0.0]
    open_choices = torch.distributions.Categorical(logits=torch.tensor([5.0, 1.0], dtype=torch.float64))
    assert masked.entropy().item() == pytest.approx(open_choices.entropy().item())
    assert masked.log_prob(torch.tensor([[1, 0]])).item() == pytest.approx(
        open_choices.log_prob(torch.tensor(1)).item()
    )
    (masked.log_prob(torch.tensor([[1, 0]])) + masked.entropy()).sum().backward()
    assert logits.grad is not None and logits.grad[0, [2, 4]].tolist() == [0.0, 0.0] and logits.grad[0, 0] != 0
    many = Categorical(logits.detach().expand(20000, 5), [3, 2], mask).sample()
    assert many[:, 0].max() == 1 and many[:, 1].max() == 0


def test_a_board_without_a_move_is_not_a_nan():
    outputs = torch.randn(2, 3, requires_grad=True)
    nothing = Categorical(outputs, [3], torch.zeros(2, 3, dtype=torch.bool))
    (nothing.entropy() + nothing.log_prob(nothing.sample())).sum().backward()
    assert nothing.entropy().isfinite().all() and outputs.grad is not None and outputs.grad.isfinite().all()


def test_a_space_without_a_policy_is_named():
    with pytest.raises(UserError, match="cannot act in a Text space"):
        ActionSpace({"type": "Text"})
