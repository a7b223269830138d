"""The policy as a module: its memory starts anew with an episode, its statistics travel, its masks hold."""

import pytest
import torch

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.errors import UserError
from worldmodel.nets import RunningNormalizer
from worldmodel.rules import RULES

DISCRETE = {"type": "Discrete", "n": 3, "start": 0}
BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0}


def make(rule="gated_norm", space=DISCRETE, layers=1, seed=0):
    torch.manual_seed(seed)
    return ActorCritic(4, space, None, rule, 6, 8, layers, -1.0, 10, 1, 1, 4).double()


def segment(steps=7, lanes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(lanes, steps, 4, generator=generator, dtype=torch.float64)
    last = torch.randn(lanes, steps, 3, generator=generator, dtype=torch.float64)
    is_first = torch.rand(lanes, steps, generator=generator) < 0.25
    return obs, last, is_first


@pytest.mark.parametrize("rule", [*RULES, "none"])
def test_stepping_is_unrolling_and_an_episode_s_start_forgets(rule):
    policy, (obs, last, is_first) = make(rule), segment()
    h = start = torch.randn(3, policy.state_dim, dtype=torch.float64)
    made = policy.states(obs, last, is_first, start)
    for t in range(obs.shape[1]):
        h = policy.advance(obs[:, t], last[:, t], is_first[:, t], h)
        torch.testing.assert_close(made[:, t], h, rtol=1e-10, atol=1e-12)
    # what was before a first frame, its last action included, reaches nothing behind it
    is_first = is_first.clone()
    is_first[:, 3] = True
    other = (torch.cat([torch.randn_like(x[:, :3]), x[:, 3:]], dim=1) for x in (obs, last))
    ours, theirs = policy.states(obs, last, is_first, start), policy.states(*other, is_first, -start)
    assert torch.equal(ours[:, 3:], theirs[:, 3:]) and not torch.equal(ours[:, 2], theirs[:, 2])
    last = last.clone()
    last[:, 3] = float("nan")
    assert torch.equal(policy.states(obs, last, is_first, start), ours), "the action before a first frame is not seen"


def test_without_memory_nothing_is_carried():
    policy, (obs, last, is_first) = make("none"), segment()
    made = policy.states(obs, last, is_first, torch.randn(3, 8, dtype=torch.float64))
    assert torch.equal(made, policy.states(obs, -last, ~is_first, None))


def test_a_new_policy_hardly_prefers_an_action():
    policy, (obs, last, is_first) = make(), segment()
    distribution = policy.distribution(policy.states(obs, last, is_first))
    assert distribution.entropy().min() > 0.999 * torch.tensor(3.0).log()


def test_what_is_masked_is_never_taken_and_teaches_nothing():
    policy, (obs, last, is_first) = make(), segment()
    mask = torch.tensor([True, False, True]).expand(3, 7, 3)
    h = policy.states(obs, last, is_first)
    distribution = policy.distribution(h, mask)
    assert (distribution.log_probs[0].exp()[..., 1] == 0).all() and (distribution.sample() != 1).all()
    (distribution.log_prob(torch.zeros(3, 7, 1, dtype=torch.int64)) + distribution.entropy()).sum().backward()
    gradient = policy.actor[-1].weight.grad
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any()


def test_a_box_learns_its_spread():
    policy, (obs, last, is_first) = make(space=BOX), segment()
    h = policy.states(obs, last[..., :2], is_first)
    policy.distribution(h).entropy().sum().backward()
    assert policy.log_std.grad.tolist() == [21.0, 21.0]


def test_observations_are_clipped_ten_deviations_out_and_a_box_starts_half_as_wide():
    policy = make(space=BOX)
    torch.testing.assert_close(policy.log_std.exp(), torch.full((2,), 0.5, dtype=torch.float64))
    near, at, beyond = (policy.encode(torch.full((1, 4), value, dtype=torch.float64)) for value in (9.0, 10.0, 1e9))
    assert torch.equal(at, beyond) and not torch.equal(near, at)


def test_the_scale_of_returns_changes_and_no_value_does():
    policy, (obs, last, is_first) = make(), segment()
    h = policy.states(obs, last, is_first)
    before = policy.value(h).detach()
    returns = 50 + 20 * torch.randn(3, 7, dtype=torch.float64)
    policy.update_returns(returns, torch.ones(3, 7, dtype=torch.bool))
    torch.testing.assert_close(policy.value(h), before)
    assert abs(policy.normalize_returns(returns).mean()) < 1e-6 and policy.return_norm.scale > 10
    for _ in range(20):
        policy.update_returns(torch.full((3, 7), -5.0).double(), torch.ones(3, 7, dtype=torch.bool))
    assert abs(policy.return_norm.mean + 5) < 0.04 * abs(returns.mean() + 5), "recent returns count for most"


def test_running_statistics_are_those_of_all_that_was_seen():
    norm, rows = RunningNormalizer(3).double(), torch.randn(5, 40, 3, dtype=torch.float64) * 7 + 3
    valid = torch.ones(40, dtype=torch.bool)
    for batch in rows:
        norm.update(batch, valid)
    flat = rows.flatten(0, 1)
    torch.testing.assert_close(norm.mean, flat.mean(dim=0))
    torch.testing.assert_close(norm.scale, flat.std(dim=0, unbiased=False))
    entries = torch.tensor([True, False, True])
    norm.update(rows[0], valid, entries)
    assert (norm.mean[1], norm.scale[1]) == (0, 1) and norm.mean[0] != 0
    mean = norm.mean.clone()
    norm.update(torch.full((40, 3), float("nan")).double(), torch.zeros(40, dtype=torch.bool))
    assert torch.equal(norm.mean, mean), "what is not valid counts for nothing"
    again = RunningNormalizer(3).double()
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again(rows), norm(rows)) and again.batches == 6


def test_wrong_sizes_and_rules_are_named():
    with pytest.raises(UserError, match="did you mean 'gated_norm'"):
        make("gated_nrom")
    with pytest.raises(UserError, match="model.width is 0"):
        ActorCritic(4, DISCRETE, None, "gru", 6, 8, 1, -1.0, 0, 1, 1, 4)
