"""Collecting from real environments: what is recorded is what happened."""

import logging
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from envs import odd_envs
from toy_env import next_observation, reward_of

from worldmodel.data.manifest import read_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.envs.make import rate_of
from worldmodel.envs.policies import make_policy
from worldmodel.errors import UserError


def episodes_of(folder):
    return [episode for _, episode in open_dataset(folder).episodes()]


def values_of(episode):
    return [*episode.observations.values(), episode.actions, episode.rewards]


def test_every_recorded_transition_is_true(toy_data):
    """Also the last one of an episode: under autoreset it must lead to the true final observation."""
    episodes = episodes_of(toy_data)
    for episode in episodes:
        seen = episode.observations["observation"]
        np.testing.assert_array_equal(seen[1:], next_observation(seen[:-1], episode.actions))
        np.testing.assert_array_equal(episode.rewards, reward_of(seen[:-1], episode.actions, seen[1:]))
        assert episode.terminated == (seen[-1, 0] == 0)
        assert episode.terminated != episode.truncated
        assert (seen[1:-1, 0] != 0).all(), "an episode continues after its end"
    assert sum(map(len, episodes)) == 600
    assert len({len(e) for e in episodes}) > 5 and any(e.truncated for e in episodes)


def test_a_dict_observation_is_recorded_key_by_key(tmp_path):
    options = CollectOptions(env_id="envs.odd_envs:Robot-v0", steps=200, num_envs=2, policy="envs.odd_envs:by_camera")
    manifest = collect(options, tmp_path / "all")
    assert set(manifest["observation_space"]) == {"arm/position", "arm/gripper", "camera"}
    episodes = episodes_of(tmp_path / "all")
    for episode in episodes:
        seen = episode.observations
        position = seen["arm/position"]
        np.testing.assert_array_equal(position[1:], next_observation(position[:-1], episode.actions))
        np.testing.assert_array_equal(seen["arm/gripper"], position[:, 1].astype(int) % 3)
        assert seen["camera"].shape[1:] == (8, 9, 3) and (seen["camera"].min((1, 2, 3)) == position[:, 0]).all()
        assert episode.rate == pytest.approx(20)
    assert sum(map(len, episodes)) == 200


@pytest.mark.parametrize(
    ("observe", "keys"), [(["camera"], {"camera"}), (["arm"], {"arm/position", "arm/gripper"}), (["arm/gripper"], None)]
)
def test_observe_keeps_the_keys_it_names(tmp_path, observe, keys):
    options = CollectOptions(env_id="envs.odd_envs:Robot-v0", steps=100, num_envs=2)
    collect(options, tmp_path / "all")
    collect({**options, "observe": observe}, tmp_path / "some")
    for whole, part in zip(episodes_of(tmp_path / "all"), episodes_of(tmp_path / "some"), strict=True):
        assert part.observations.keys() == (keys or {"arm/gripper"})
        for key, values in part.observations.items():
            np.testing.assert_array_equal(values, whole.observations[key])


def test_a_policy_is_told_where_episodes_start(tmp_path):
    odd_envs.notes_firsts.seen.clear()
    options = CollectOptions(
        env_id="toy_env:Toy-v0", steps=200, num_envs=1, max_episode_steps=20, policy="envs.odd_envs:notes_firsts"
    )
    collect(options, tmp_path / "d")
    starts = [tuple(e.observations["observation"][0]) for e in episodes_of(tmp_path / "d")]
    assert odd_envs.notes_firsts.seen == starts and len(starts) >= 10


def test_the_same_options_give_the_same_files(tmp_path):
    options = CollectOptions(env_id="CartPole-v1", steps=500, num_envs=4, policy="smooth", seed=3)
    first, second = (collect(options, tmp_path / name)["files"] for name in ("a", "b"))
    assert first == second  # names and sha256
    assert collect({**options, "seed": 7}, tmp_path / "c")["files"] != first


@pytest.mark.parametrize("env_id", ["CartPole-v1", "envs.odd_envs:Robot-v0"])
def test_processes_record_what_one_process_does(tmp_path, env_id):
    options = CollectOptions(env_id=env_id, steps=200, num_envs=2)
    assert collect(options, tmp_path / "a")["files"] == collect(options, tmp_path / "b", "async")["files"]


def test_observe_hides_entries_and_nothing_else(tmp_path):
    options = CollectOptions(env_id="Pendulum-v1", steps=400)
    collect(options, tmp_path / "all")
    collect({**options, "observe": [1, 0]}, tmp_path / "some")
    for whole, part in zip(episodes_of(tmp_path / "all"), episodes_of(tmp_path / "some"), strict=True):
        seen = whole.observations["observation"][:, [1, 0]]
        np.testing.assert_array_equal(seen, part.observations["observation"])
        np.testing.assert_array_equal(whole.actions, part.actions)
    space = read_manifest(tmp_path / "some")["observation_space"]["observation"]
    assert space["shape"] == [2] and space["high"] == [1.0, 1.0]


def test_the_manifest_says_where_the_data_comes_from(toy_data):
    manifest = read_manifest(toy_data)
    assert manifest["collect"]["env_id"] == "toy_env:Toy-v0" and manifest["collect"]["seed"] == 0
    assert manifest["versions"]["gymnasium"] == gym.__version__
    assert "leads" in manifest["alignment"] and manifest["action_space"]["high"] == [2.0]


@pytest.mark.parametrize(
    ("env_id", "rate"),
    [
        ("Pendulum-v1", 20),
        ("CartPole-v1", 50),
        ("LunarLander-v3", 50),
        ("HalfCheetah-v5", 20),
        ("MountainCar-v0", None),
    ],
)
def test_the_rate_is_that_of_the_simulated_clock(env_id, rate):
    env = gym.make(env_id)
    assert rate_of(env) == pytest.approx(rate) if rate else math.isnan(rate_of(env))
    env.close()


def test_an_appended_collection_repeats_nothing(tmp_path):
    options = CollectOptions(env_id="Pendulum-v1", steps=400, num_envs=2, max_episode_steps=100)
    before = collect(options, tmp_path)
    for seed in (0, 1):  # the environments of the first collection had the seeds 0 and 1
        with pytest.raises(UserError, match="already collected.*--seed 2"):
            collect({**options, "seed": seed}, tmp_path, append=True)
    after = collect({**options, "seed": 2, "steps": 200}, tmp_path, append=True)
    assert after["steps"] == 600 and [past["seed"] for past in after["collected"]] == [0, 2]
    assert after["collect"] == before["collect"]
    starts = [tuple(e.observations["observation"][0]) for e in episodes_of(tmp_path)]
    assert len(starts) == len(set(starts)) == 6
    with pytest.raises(UserError, match="--append"):
        collect({**options, "seed": 9}, tmp_path)
    with pytest.raises(UserError, match="another observation space"):
        collect({**options, "seed": 9, "observe": [0]}, tmp_path, append=True)
    assert read_manifest(tmp_path)["files"] == after["files"]


def test_episodes_of_mixed_lengths_make_every_age_as_frequent(tmp_path):
    """In each doubling of the length as many episodes; otherwise nothing but where episodes end is different."""
    options = CollectOptions(env_id="Pendulum-v1", steps=10_000, num_envs=4, max_episode_steps=160)
    collect({**options, "min_episode_steps": 10}, tmp_path / "mixed")
    collect({**options, "min_episode_steps": 10, "steps": 2000}, tmp_path / "same")
    collect({**options, "steps": 1000}, tmp_path / "long")
    lengths = np.array([len(e) for e in episodes_of(tmp_path / "mixed")])
    assert lengths.min() >= 1 and lengths.max() <= 160 and (lengths < 10).sum() <= 4, "the last of each environment"
    counts = np.histogram(lengths, [10, 20, 40, 80, 161])[0]
    assert (np.abs(counts - counts.mean()) < 4 * np.sqrt(counts.mean())).all()
    same = [len(e) for e in episodes_of(tmp_path / "same")][:-4]  # the last of each environment is cut
    assert len(same) > 20 and same == lengths[: len(same)].tolist()
    firsts = [e for e in episodes_of(tmp_path / "long")[:4]]
    for mixed in episodes_of(tmp_path / "mixed"):
        assert mixed.truncated and not mixed.terminated
        for whole in firsts:
            if (mixed.observations["observation"][0] == whole.observations["observation"][0]).all():
                expected = whole.observations["observation"][: len(mixed) + 1]
                np.testing.assert_array_equal(mixed.observations["observation"], expected)
                firsts = [e for e in firsts if e is not whole]
    assert not firsts, "each environment's first episode, as far as it goes"


@pytest.mark.parametrize("limits", [{"min_episode_steps": 20}, {"min_episode_steps": 20, "max_episode_steps": 19}])
def test_a_least_length_needs_a_greatest(tmp_path, limits):
    with pytest.raises(UserError, match="--min_episode_steps 20 needs --max_episode_steps"):
        collect({"env_id": "Pendulum-v1", "steps": 100, **limits}, tmp_path)


def test_progress_counts_every_step_and_every_episode_on_disk(tmp_path):
    steps, safe = [], []
    options = CollectOptions(env_id="CartPole-v1", steps=1000)
    manifest = collect(options, tmp_path / "d", on_steps=steps.append, on_acknowledged=safe.append)
    assert sum(steps) == 1000 and sum(safe) == manifest["episodes"]


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


def test_actions_out_of_bounds_are_recorded_with_one_warning(tmp_path, caplog):
    options = CollectOptions(env_id="toy_env:Toy-v0", steps=50, num_envs=2, policy="envs.odd_envs:too_far")
    with caplog.at_level(logging.WARNING):
        collect(options, tmp_path / "d")
    assert len([r for r in caplog.records if "leaves the bounds" in r.message]) == 1
    assert all((episode.actions == 3).all() for episode in episodes_of(tmp_path / "d"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "Pendulm-v1"}, "did you mean 'Pendulum-v1'"),
        ({"env_id": "Pendulum-v9"}, "did you mean 'Pendulum-v1'"),
        ({"env_id": "no_such_module:X-v0"}, "no_such_module"),
        ({"env_id": "Blackjack-v1"}, "a Tuple space is not supported"),
        ({"observe": [0, 3]}, "entries 0 to 2"),
        ({"observe": ["angle"]}, "no key 'angle': its keys are observation"),
        ({"observe": []}, "--observe is empty"),
        ({"env_id": "envs.odd_envs:Robot-v0", "observe": [0]}, "has the keys arm/gripper, arm/position, camera"),
        ({"env_id": "envs.odd_envs:Robot-v0", "observe": ["leg"]}, "no key 'leg': its keys are arm/gripper"),
        ({"policy": "unifrom"}, "did you mean 'uniform'"),
        ({"policy": "toy_env:integer_action"}, "did you mean 'integer_actions'"),
        ({"policy": "nowhere.py:f"}, "cannot be loaded"),
        ({"policy": "envs.odd_envs:raises"}, "step 0: the policy raised KeyError: 'door' .odd_envs.py:"),
        ({"env_id": "CartPole-v1", "policy": "envs.odd_envs:wrong_index"}, "is not of the space"),
        ({"env_id": "CartPole-v1", "policy": "envs.odd_envs:too_far"}, "actions of shape .8, 1.; it must be .8,."),
        ({"env_kwargs": {"gravity": 3}}, "gravity"),
        ({"env_id": "HalfCheetah-v5", "env_kwargs": {"xml_file": "/no/cat.xml"}}, "/no/cat.xml"),
        ({"steps": 0}, "at least 1"),
        ({"pixels": 4}, "from 8 to 1024"),
        ({"pixels": [64, 64, 3]}, "from 8 to 1024"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    options = {"env_id": "Pendulum-v1", "steps": 10, **change}
    with pytest.raises(UserError, match=message):
        collect(CollectOptions(**options), tmp_path / "d")
    assert not Path(tmp_path / "d").exists()
