"""Rollouts on an environment whose every transition is known, and the chunks that are trained on."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_env import Toy, next_observation, reward_of

from worldmodel.envs.make import make_simulator
from worldmodel.envs.observe import ObservationVectors
from worldmodel.losses import gae
from worldmodel.modules.collector import Collector
from worldmodel.modules.experience_data import ExperienceDataModule
from worldmodel.modules.policy import Policy

LIMIT = 6  # steps: most episodes of the toy are cut off, some end


class Whole(Toy):
    """The toy with five actions, the whole numbers from -2 to 2: exact, and terminal now and then."""

    action_space = spaces.Discrete(5, start=-2)

    def step(self, action):
        return super().step(np.array([action], np.float32))


gym.register("Whole-v0", entry_point=Whole)


def collector(rule="gated_norm", env="Whole-v0", num_envs=5, earlier=0, limit=LIMIT, **options):
    torch.manual_seed(0)
    simulator = make_simulator(env, num_envs, limit, masks=True)
    vectors = ObservationVectors(simulator.envs.single_observation_space, simulator.envs.single_action_space, None)
    policy = Policy(
        vectors.layout.obs_dim, vectors.layout.action_space, rule=rule, latent_dim=6, hidden_dim=8, width=10
    ).double()
    return Collector(policy, simulator, vectors, 3, earlier, **options), policy


def test_every_transition_is_one_of_the_environment():
    made, policy = collector()
    several = [made.collect(11) for _ in range(3)]
    for before, after in zip(several, several[1:], strict=False):
        assert torch.equal(before.obs[:, -1], after.obs[:, 0]), "a rollout goes on where the last one ended"
    obs = torch.cat([r.obs[:, :-1] for r in several] + [several[-1].obs[:, -1:]], dim=1).numpy()
    is_first = torch.cat([r.is_first[:, :-1] for r in several] + [several[-1].is_first[:, -1:]], dim=1).numpy()
    valid, ended = (torch.cat([getattr(r, name) for r in several], dim=1).numpy() for name in ("valid", "terminated"))
    reward, drawn = (torch.cat([getattr(r, name) for r in several], dim=1) for name in ("reward", "action"))
    action = policy.actions.to_env(drawn).numpy()[..., None].astype(np.float32)
    expected = next_observation(obs[:, :-1].astype(np.float32), action)
    assert np.array_equal(obs[:, 1:][valid], expected[valid])
    assert np.array_equal(reward.numpy()[valid], reward_of(obs[:, :-1], action, obs[:, 1:])[valid])
    assert (~valid).any() and np.array_equal(~valid, is_first[:, 1:]), "only the step to a first frame is none"
    assert is_first[:, 0].all() and (reward.numpy()[~valid] == 0).all() and not ended[~valid].any()
    # an episode has LIMIT steps, but where it ended before
    age = 0
    for t in range(valid.shape[1]):
        age = 0 if is_first[0, t] else age + 1
        if not valid[0, t]:
            assert age == LIMIT or ended[0, t - 1]


def test_a_cut_off_episode_is_worth_its_last_frame_and_a_terminal_one_nothing():
    made, policy = collector()
    rollout = made.collect(30)
    policy.obs_norm.update(rollout.obs[:, :-1], rollout.valid)
    rollout.refresh(policy)
    with torch.no_grad():
        value = policy.value(policy.states(rollout.obs, rollout.last_action, rollout.is_first))
    assessed = rollout.assess(policy, 0.9, 0.8)
    target = policy.return_norm.inverse(assessed["target"].unsqueeze(-1)).squeeze(-1)
    kinds = {"cut off": 0, "terminal": 0}
    for lane in range(5):
        for t in range(29):
            if not rollout.valid[lane, t + 1]:
                ends = bool(rollout.terminated[lane, t])
                expected = rollout.reward[lane, t] + (0 if ends else 0.9 * value[lane, t + 1])
                assert target[lane, t].item() == pytest.approx(expected.item(), rel=1e-9)
                kinds["terminal" if ends else "cut off"] += 1
    assert min(kinds.values()) > 0, kinds
    advantage = gae(rollout.reward, value, ~rollout.terminated, rollout.valid, 0.9, 0.8)
    kept = advantage[rollout.valid]
    torch.testing.assert_close(assessed["advantage"], (advantage - kept.mean()) / (kept.std() + 1e-8))


def test_segments_are_judged_as_if_each_were_a_rollout():
    made, policy = collector(limit=20)
    rollout = made.collect(12)
    h = policy.states(rollout.obs, rollout.last_action, rollout.is_first, rollout.before[:, 0])
    value, expected = policy.value(h).detach(), []
    for first in (0, 5):
        now = slice(first, first + 5)
        advantage = gae(
            rollout.reward[:, now], value[:, first : first + 6], ~rollout.terminated[:, now], rollout.valid[:, now],
            0.9, 0.8,
        )  # fmt: skip
        squares = advantage[rollout.valid[:, now]].square()
        expected.append(squares.mean())
    found = rollout.segment_losses(policy, 0.9, 0.8, 5)
    assert torch.allclose(found, torch.stack(expected), rtol=1e-12, atol=0)
    halves = rollout.segment_losses(policy, 0.9, 0.8, 100)
    assert torch.equal(halves, rollout.segment_losses(policy, 0.9, 0.8, 6)) and not torch.equal(halves, found)


@pytest.mark.parametrize("rule", ["gated_norm", "lstm", "none"])
def test_stored_states_are_those_of_an_unroll_from_the_start(rule):
    made, policy = collector(rule)
    several = [made.collect(9) for _ in range(3)]
    parts = {
        name: torch.cat([getattr(r, name)[:, :-1] for r in several], dim=1)
        for name in ("obs", "last_action", "is_first", "before")
    }
    with torch.no_grad():
        h = policy.states(parts["obs"], parts["last_action"], parts["is_first"])
    torch.testing.assert_close(parts["before"][:, 1:], h[:, :-1], rtol=1e-10, atol=1e-12)
    log_prob = several[0].assess(policy, 0.9, 0.9)["log_prob"]
    expected = policy.distribution(h[:, :9]).log_prob(several[0].action)
    torch.testing.assert_close(log_prob, expected.detach(), rtol=1e-9, atol=1e-10)


def test_frames_before_a_rollout_are_those_of_the_one_before():
    made, policy = collector(earlier=4)
    first, second = made.collect(9), made.collect(9)
    assert first.earlier == second.earlier == 4 and (first.obs[:, :4] == 0).all()
    for name in ("obs", "last_action", "is_first", "before"):
        assert torch.equal(getattr(second, name)[:, :5], getattr(first, name)[:, 9:14]), name
    before = second.before.clone()
    second.refresh(policy)
    torch.testing.assert_close(second.before, before, rtol=1e-10, atol=1e-12)  # the weights are those that acted


@pytest.mark.parametrize(("steps", "earlier"), [(25, 0), (25, 3), (7, 0), (16, 2)])
def test_chunks_hold_every_step_once(steps, earlier):
    made, policy = collector(earlier=earlier)
    made.collect(10)
    rollout = made.collect(steps)
    chunks = rollout.chunks(8, rollout.assess(policy, 0.9, 0.9))
    pieces = -(-steps // 8)
    assert chunks["obs"].shape == (5 * pieces, earlier + 8, 2) and chunks["action"].shape == (5 * pieces, 8, 1)
    assert not chunks["valid"][:, :earlier].any() and int(chunks["valid"].sum()) == int(rollout.valid.sum())
    for lane in range(5):
        for piece in range(pieces):
            row, start = lane * pieces + piece, 8 * piece
            real = min(8, steps - start)
            window = rollout.obs[lane, start : start + earlier + real]
            assert torch.equal(chunks["obs"][row, : earlier + real], window)
            assert torch.equal(chunks["carry"][row], rollout.before[lane, start])
            assert torch.equal(chunks["action"][row, :real], rollout.action[lane, start : start + real])
            assert not chunks["valid"][row, earlier + real :].any()


def trained(policy: Policy, batch):
    terms, _ = policy.terms(batch)
    loss = policy.loss(terms)
    return loss, torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)


def moved(policy):
    """Other weights than those that acted: ratios that are not 1."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


@pytest.mark.parametrize("rule", ["gated_norm", "gru", "none"])
def test_where_a_chunk_covers_the_episode_its_gradient_is_that_of_a_whole_unroll(rule):
    # the first episodes of all lanes, whole, in one chunk with padding, against an unroll by hand from zeros
    made, policy = collector(rule, limit=6)
    rollout = made.collect(8)
    assessed = rollout.assess(policy, 0.9, 0.9)
    moved(policy)
    loss, gradient = trained(policy, rollout.chunks(8, assessed))
    h, losses = torch.zeros(5, policy.state_dim, dtype=torch.float64), []
    for t in range(8):
        h = policy.advance(rollout.obs[:, t], rollout.last_action[:, t], rollout.is_first[:, t], h)
        distribution = policy.distribution(h)
        ratio = (distribution.log_prob(rollout.action[:, t]) - assessed["log_prob"][:, t]).exp()
        a, v = assessed["advantage"][:, t], policy.normalized_value(h)
        surrogate = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        step = surrogate + 0.5 * (v - assessed["target"][:, t]).square() / 2
        losses.append(step[rollout.valid[:, t]])
    expected = torch.cat(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected, list(policy.parameters()), allow_unused=True)
    for ours, theirs in zip(gradient, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [25, 7])
def test_the_loss_of_all_chunks_is_the_mean_over_all_steps(steps):
    made, policy = collector()
    rollout = made.collect(steps)
    assessed = rollout.assess(policy, 0.9, 0.9)
    in_chunks, whole = (policy.terms(rollout.chunks(length, assessed))[0] for length in (8, steps))
    for name, value in whole.items():
        torch.testing.assert_close(in_chunks[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_burn_in_mends_a_stale_state_and_has_no_gradient():
    made, policy = collector(earlier=6)
    made.collect(12)
    rollout = made.collect(12)
    assessed = rollout.assess(policy, 0.9, 0.9)
    moved(policy)
    chunks = rollout.chunks(4, assessed)
    stale = policy.states(chunks["obs"][:, 6:], chunks["last_action"][:, 6:], chunks["is_first"][:, 6:],
                          rollout.chunks(4, {})["carry"])  # fmt: skip
    _, h = policy.terms(chunks)
    rollout.refresh(policy)
    fresh = policy.states(rollout.obs, rollout.last_action, rollout.is_first, rollout.before[:, 0])
    exact = fresh[:, 6:-1].reshape(15, 4, -1)
    assert (h[:, 6:] - exact).norm() < 0.5 * (stale - exact).norm()
    carry = chunks["carry"].clone().requires_grad_()
    terms, _ = policy.terms(chunks | {"carry": carry})
    assert torch.autograd.grad(policy.loss(terms), carry, allow_unused=True)[0] is None


@pytest.mark.parametrize("how", ["keep", "zero", "burn_in", "replay"])
def test_a_change_of_weights_mends_the_state(how):
    made, policy = collector(stale_state=how, burn_in_steps=8, limit=40)
    made.collect(9)
    rollout = made.collect(9)
    assert not made.refresh_state()
    old = made.agent.h.clone()
    other = {name: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
             for name, value in policy.state_dict().items() if "norm" not in name}  # fmt: skip
    policy.load_state_dict(other, strict=False)
    assert made.refresh_state() and not made.refresh_state()
    frames = rollout.obs[:, :-1], rollout.last_action[:, :-1], rollout.is_first[:, :-1]
    with torch.no_grad():
        recent = policy.states(*(part[:, -8:] for part in frames))[:, -1]
    expected = {"keep": old, "zero": torch.zeros_like(old), "burn_in": recent}
    if how == "replay":
        assert not torch.equal(made.agent.h, recent) and not torch.equal(made.agent.h, old)
    else:
        torch.testing.assert_close(made.agent.h, expected[how], rtol=1e-10, atol=1e-12)
    made.collect(3)


def test_the_budget_is_validated_ten_times_and_counts_its_batches():
    data = ExperienceDataModule("CartPole-v1", num_envs=4, rollout_steps=100, total_steps=10_000)
    assert data.val_every == 1000 and data.planned_batches == 25 * 4 * 4
    assert len(data.train_dataloader()) == 2 * 4 * 4


def test_a_checkpoint_names_the_network_s_arguments_that_were_not_given():
    _, policy = collector("gru")
    assert {"rule": "gru", "width": 10, "depth": 1, "gate_bias": -1.0}.items() <= dict(policy.hparams).items()


class Cliff(gym.Env):
    """The mask of its info allows one action, told by the step's number; any other is an error."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"action_mask": self._mask()}

    def step(self, action):
        assert action == self.t % 3, "not masked"
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 7, False, {"action_mask": self._mask()}

    def _mask(self):
        return (np.arange(3) == self.t % 3).astype(np.int8)


gym.register("Cliff-v0", entry_point=Cliff)


def test_the_mask_of_an_info_holds_in_every_step():
    made, policy = collector(env="Cliff-v0", limit=None)
    rollout = made.collect(20)
    assert rollout.mask is not None and rollout.mask.sum() == 5 * 20
    assert set(made.returns) == {7.0} and rollout.obs.shape[-1] == 1
    assert rollout.chunks(8, {})["mask"].shape == (15, 8, 3)


def test_a_build_that_forgets_to_reset_is_found(monkeypatch):
    """What the tests above hold on to: without resets they fail."""
    from worldmodel.agents import actor_critic

    monkeypatch.setattr(actor_critic, "advance", lambda cell, x, h, is_first: cell.step(x, h))
    with pytest.raises(AssertionError, match="not close"):
        test_stored_states_are_those_of_an_unroll_from_the_start("gated_norm")
