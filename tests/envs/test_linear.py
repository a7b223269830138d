"""The linear system: what it is said to be, and what Gymnasium and the collector make of it."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.linalg import solve_discrete_lyapunov

from worldmodel.cli import main
from worldmodel.data.check import check_episodes
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.envs import LINEAR_GAUSSIAN
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.envs.linear import linear_system
from worldmodel.envs.make import make_simulator
from worldmodel.errors import UserError

OPTIONS = [
    {},
    {"order": 2, "damping": 0.5},
    {"order": 8, "damping": 0.01, "obs_dim": 3, "action_dim": 2, "system_seed": 4},
    {"order": 4, "damping": 1, "obs_dim": 6, "process_noise": 2},
]


def recorded(options, episodes, steps):
    """Observations (E, T + 1, O), actions (E, T, A) and rewards (E, T) under uniform actions."""
    env = gym.make(LINEAR_GAUSSIAN, disable_env_checker=True, **options).unwrapped
    rng = np.random.default_rng(0)
    obs, rewards = [], []
    actions = rng.uniform(-1, 1, (episodes, steps, *env.action_space.shape)).astype(np.float32)
    for i, chosen in enumerate(actions):
        obs.append([env.reset(seed=i)[0]])
        rewards.append([])
        for action in chosen:
            seen, reward, *_ = env.step(action)
            obs[-1].append(seen)
            rewards[-1].append(reward)
    return np.array(obs), actions, np.array(rewards)


@pytest.mark.filterwarnings("ignore")  # it warns of observations without bounds
@pytest.mark.parametrize("options", OPTIONS)
def test_gymnasium_accepts_it(options):
    env = gym.make(LINEAR_GAUSSIAN, **options)
    check_env(env.unwrapped)
    assert env.observation_space.shape == (options.get("obs_dim", 1),)
    assert env.action_space.shape == (options.get("action_dim", 1),)


@pytest.mark.parametrize("options", OPTIONS)
def test_order_damping_and_noise_are_what_was_asked_for(options):
    system = linear_system(**options)
    asked = {"order": 4, "damping": 0.05, "obs_dim": 1, "process_noise": 0.3, "observation_noise": 0.3} | options
    assert system.A.shape == (asked["order"],) * 2
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(system.A)), 1 - asked["damping"], atol=1e-12)
    driven, disturbed = (
        system.C @ solve_discrete_lyapunov(system.A, covariance) @ system.C.T
        for covariance in (system.B @ system.B.T / 3, system.Q)
    )
    assert np.trace(driven) == pytest.approx(asked["obs_dim"]), "an output that actions drive has variance 1"
    assert np.trace(disturbed) == pytest.approx(asked["obs_dim"] * asked["process_noise"] ** 2)
    np.testing.assert_allclose(system.R, asked["observation_noise"] ** 2 * np.eye(asked["obs_dim"]))
    np.testing.assert_allclose(
        system.start, system.A @ system.start @ system.A.T + system.B @ system.B.T / 3 + system.Q, atol=1e-12
    )


def test_another_seed_is_another_system_and_the_same_one_the_same():
    one, same, other = (linear_system(system_seed=seed) for seed in (1, 1, 2))
    for name in ("A", "B", "C", "Q", "start"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert not np.allclose(one.A, other.A)


def test_episodes_are_stationary_and_follow_the_matrices():
    """Second moments over 3000 episodes, at an episode's start and at its end, within 5 standard errors."""
    options = {"order": 4, "obs_dim": 4, "action_dim": 2, "damping": 0.1}  # as many outputs as states: C is invertible
    system = linear_system(**options)
    obs, actions, _ = recorded(options, 3000, 8)
    to_state = np.linalg.inv(system.C)
    states = obs @ to_state.T  # with the noise of the outputs
    noise = to_state @ system.R @ to_state.T
    P = system.start

    def close(left, right, expected, left_cov, right_cov):
        error = np.sqrt((np.outer(np.diag(left_cov), np.diag(right_cov)) + expected**2) / len(left))
        assert (np.abs(left.T @ right / len(left) - expected) < 5 * error).all()

    for t in (0, 8):
        close(states[:, t], states[:, t], P + noise, P + noise, P + noise)
        close(obs[:, t], obs[:, t], *[system.C @ P @ system.C.T + system.R] * 3)
        assert (np.abs(states[:, t].mean(0)) < 5 * np.sqrt(np.diag(P + noise) / 3000)).all()
    close(states[:, 1], states[:, 0], system.A @ P, P + noise, P + noise)
    close(states[:, 8], states[:, 5], np.linalg.matrix_power(system.A, 3) @ P, P + noise, P + noise)
    close(states[:, 1], actions[:, 0], system.B / 3, P + noise, np.eye(2) / 3)


def test_the_reward_asks_for_an_output_of_zero():
    obs, _, rewards = recorded({"obs_dim": 2, "observation_noise": 1e-6}, 3, 20)
    np.testing.assert_allclose(rewards, -np.square(obs[:, 1:]).sum(-1), rtol=1e-3, atol=1e-5)


def test_noise_is_a_function_of_the_seed(tmp_path):
    def data(name, seed):
        options = CollectOptions(env_id=LINEAR_GAUSSIAN, steps=300, seed=seed, num_envs=2, max_episode_steps=50)
        collect(options, tmp_path / name)
        return np.concatenate([e.observations["observation"] for _, e in open_dataset(tmp_path / name).episodes()])

    one, same, other = data("a", 3), data("b", 3), data("c", 30)
    np.testing.assert_array_equal(one, same)
    assert not np.isin(one, other).any(), "no number twice"
    assert len(np.unique(one)) == len(one)


def test_its_recordings_pass_every_check(tmp_path):
    options = CollectOptions(
        env_id=LINEAR_GAUSSIAN, steps=4000, max_episode_steps=200, env_kwargs={"obs_dim": 2, "action_dim": 2}
    )
    manifest = collect(options, tmp_path / "d")
    assert manifest["collected"][-1]["env_kwargs"] == options.get("env_kwargs"), "from it the floor is made"
    order = np.random.default_rng(0).permutation(20)
    assert check_episodes(open_dataset(tmp_path / "d"), lambda n: {"train": order[:15], "val": order[15:]}) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 3}, "order is 3: it must be even"),
        ({"order": 4.0}, "order is 4.0"),
        ({"order": 0}, "order is 0"),
        ({"damping": 0}, "damping is 0: it must be above 0 and at most 1"),
        ({"damping": "weak"}, "damping is 'weak'"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"obs_dim": 0}, "obs_dim is 0: it must be a whole number, at least 1"),
        ({"action_dim": None}, "action_dim is None"),
        ({"process_noise": 0}, "process_noise is 0: it must be a number above 0"),
        ({"observation_noise": float("inf")}, "observation_noise is inf"),
        ({"system_seed": -1}, "system_seed is -1"),
        ({"dampening": 0.1}, "unknown linear system's option 'dampening': did you mean 'damping'?"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as raised:
        make_simulator(LINEAR_GAUSSIAN, 1, env_kwargs=options)
    assert "\n" not in str(raised.value)


def test_wrong_options_are_one_line_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["collect", LINEAR_GAUSSIAN, "--out", "d", "--env_kwargs", json.dumps({"order": 3})])
    line = "worldmodel: error: a linear system's order is 3: it must be even and at least 2\n"
    assert stop.value.code == 2 and capsys.readouterr().err == line
