"""Collecting from real environments: what is recorded is what happened."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from toy_env import next_observation, reward_of

from worldmodel.data.store import load_episodes, read_file, read_manifest
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.envs.policies import make_policy
from worldmodel.errors import UserError


def episodes_of(folder):
    return [e for entry in read_manifest(folder)["files"] for e in read_file(folder, entry)]


def test_every_recorded_transition_is_true(toy_data):
    """Also the last one of an episode: under autoreset it must lead to the true final observation."""
    episodes = episodes_of(toy_data)
    for episode in episodes:
        before, after = episode.observations[:-1], episode.observations[1:]
        np.testing.assert_array_equal(after, next_observation(before, episode.actions))
        np.testing.assert_array_equal(episode.rewards, reward_of(before, episode.actions, after))
        assert episode.terminated == (episode.observations[-1, 0] == 0)
        assert episode.terminated != episode.truncated
        assert (episode.observations[1:-1, 0] != 0).all(), "an episode goes on behind its end"
    assert sum(map(len, episodes)) == 600
    assert len({len(e) for e in episodes}) > 5 and any(e.truncated for e in episodes)


def test_the_same_options_give_the_same_files(tmp_path):
    options = CollectOptions(env_id="CartPole-v1", steps=500, num_envs=4, policy="smooth", seed=3)
    first, second = (collect(options, tmp_path / name)["files"] for name in ("a", "b"))
    assert first == second  # names and sha256
    assert collect({**options, "seed": 4}, tmp_path / "c")["files"] != first


def test_processes_record_what_one_process_does(tmp_path):
    options = CollectOptions(env_id="CartPole-v1", steps=200, num_envs=2)
    assert collect(options, tmp_path / "a")["files"] == collect(options, tmp_path / "b", "async")["files"]


def test_observe_hides_entries_and_nothing_else(tmp_path):
    options = CollectOptions(env_id="Pendulum-v1", steps=400)
    collect(options, tmp_path / "all")
    collect({**options, "observe": [1, 0]}, tmp_path / "some")
    whole, part = (load_episodes(tmp_path / name)[0] for name in ("all", "some"))
    np.testing.assert_array_equal(whole.obs[:, [1, 0]], part.obs)
    np.testing.assert_array_equal(whole.action, part.action)
    space = read_manifest(tmp_path / "some")["observation_space"]
    assert space["shape"] == [2] and space["high"] == [1.0, 1.0]


def test_the_manifest_says_where_the_data_comes_from(toy_data):
    manifest = read_manifest(toy_data)
    assert manifest["collect"]["env_id"] == "toy_env:Toy-v0" and manifest["collect"]["seed"] == 0
    assert manifest["versions"]["gymnasium"] == gym.__version__
    assert "leads" in manifest["alignment"] and manifest["action_space"]["high"] == [2.0]


@pytest.mark.parametrize("policy", ["uniform", "smooth"])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_policies_stay_in_the_action_space(policy, env_id):
    env = gym.make(env_id)
    act = make_policy(policy, env.action_space, 3, seed=0)
    actions = [act(np.zeros((3, 4)), np.zeros(3, bool)) for _ in range(200)]
    assert all(env.action_space.contains(action) for many in actions for action in many)
    assert len({np.asarray(many).tobytes() for many in actions}) > 5


def test_smooth_actions_persist():
    space = gym.make("Pendulum-v1").action_space
    act = make_policy("smooth", space, 1, seed=0)
    series = np.array([act(np.zeros((1, 3)), np.zeros(1, bool))[0, 0] for _ in range(2000)])
    assert np.corrcoef(series[1:], series[:-1])[0, 1] > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "Pendulm-v1"}, "did you mean 'Pendulum-v1'"),
        ({"env_id": "Pendulum-v9"}, "did you mean 'Pendulum-v1'"),
        ({"env_id": "no_such_module:X-v0"}, "no_such_module"),
        ({"observe": [0, 3]}, "entries 0 to 2"),
        ({"policy": "unifrom"}, "did you mean 'uniform'"),
        ({"policy": "toy_env:integer_action"}, "did you mean 'integer_actions'"),
        ({"policy": "nowhere.py:f"}, "cannot be loaded"),
        ({"env_kwargs": {"gravity": 3}}, "gravity"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    options = {"env_id": "Pendulum-v1", "steps": 10, **change}
    with pytest.raises(UserError, match=message):
        collect(CollectOptions(**options), tmp_path / "d")
    assert not Path(tmp_path / "d").exists()


def test_an_interrupt_keeps_the_finished_episodes(tmp_path):
    seen = 0

    def interrupt(steps):
        nonlocal seen
        seen += steps
        if seen > 300:
            raise KeyboardInterrupt

    options = CollectOptions(env_id="CartPole-v1", steps=10_000)
    with pytest.raises(KeyboardInterrupt):
        collect(options, tmp_path / "d", on_steps=interrupt)
    kept = episodes_of(tmp_path / "d")
    assert len(kept) > 5 and sum(map(len, kept)) <= seen
    with pytest.raises(KeyboardInterrupt):
        seen = 0
        collect(options, tmp_path / "e", keep_interrupted=False, on_steps=interrupt)
    with pytest.raises(UserError, match="no dataset"):
        read_manifest(tmp_path / "e")
