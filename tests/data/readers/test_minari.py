"""Minari datasets, written by the minari package itself, come back transition for transition."""

import json
from dataclasses import replace

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from tests.data.readers.toy import assert_same, episodes, is_exact, only
from worldmodel.data.readers import open_source
from worldmodel.data.readers.minari import read_minari
from worldmodel.data.spaces import describe, describe_observation
from worldmodel.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # that authors and so on are not given
STATE = spaces.Box(0, 31, (2,), np.float32)
ACTION = spaces.Box(-2, 2, (1,), np.float32)
CAMERA = spaces.Box(0, 255, (32, 40, 3), np.uint8)


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Write buffers with minari's own writer; returns the dataset's folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def write(buffers, **options):
        minari.create_dataset_from_buffers("toy/test-v0", buffers, **options)
        return tmp_path / "toy" / "test-v0"

    return write


def buffer(episode, observations=None):
    flags = np.zeros((2, len(episode)), bool)
    flags[:, -1] = episode.terminated, episode.truncated
    return EpisodeBuffer(
        observations=episode.observations["state"] if observations is None else observations,
        actions=episode.actions,
        rewards=list(episode.rewards),
        terminations=list(flags[0]),
        truncations=list(flags[1]),
    )


def read(path):
    return [episode for _, episode in read_minari(path).episodes()]


@pytest.fixture
def toy_folder(save):
    return save([buffer(one) for one in episodes()], observation_space=STATE, action_space=ACTION)


def test_every_transition_comes_back(toy_folder):
    found = read(toy_folder)
    assert_same(found, [only(one, observation="state") for one in episodes()])
    assert all(is_exact(one, "observation") for one in found)
    assert_same(read(toy_folder / "data"), found)
    assert [open_source(folder).format for folder in (toy_folder, toy_folder / "data")] == ["minari"] * 2


def test_spaces_and_names(toy_folder):
    source = read_minari(toy_folder)
    assert source.observation_space == describe_observation(STATE)
    assert source.action_space == describe(ACTION)
    assert [name for name, _ in source.episodes()][:2] == ["main_data.hdf5, episode 0", "main_data.hdf5, episode 1"]


def test_a_real_environment_with_discrete_actions(save):
    environment = gymnasium.make("CartPole-v1")
    observations, actions, rewards, ends = [environment.reset(seed=0)[0]], [], [], []
    while not ends or not ends[-1]:
        actions.append(len(actions) % 2)
        observation, reward, terminated, _, _ = environment.step(actions[-1])
        observations.append(observation), rewards.append(reward), ends.append(terminated)
    one = EpisodeBuffer(
        observations=observations, actions=actions, rewards=rewards, terminations=ends, truncations=[False] * len(ends)
    )
    source = read_minari(save([one], env="CartPole-v1", algorithm_name="alternate"))
    ((_, found),) = source.episodes()
    assert source.action_space == {"type": "Discrete", "n": 2, "start": 0}
    assert source.provenance["env_id"] == "CartPole-v1" and source.provenance["algorithm_name"] == "alternate"
    np.testing.assert_array_equal(found.observations["observation"], np.stack(observations))
    np.testing.assert_array_equal(found.actions, actions)
    assert (len(found), found.terminated, found.truncated) == (len(actions), True, False)


@pytest.mark.parametrize("moves", [False, True], ids=["frames of one size", "frames of many sizes"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_dict_observations_with_images(save, moves, jpeg):
    rng = np.random.default_rng(0)
    originals = episodes((4, 2))
    space = spaces.Dict({"arm": spaces.Dict({"state": STATE}), "camera": CAMERA})
    buffers, frames = [], []
    for one in originals:
        step = moves * np.arange(len(one) + 1)[:, None, None, None]
        edges = step * (np.arange(40) > rng.integers(5, 35))[:, None]
        frames.append(np.broadcast_to(step * 20 + 20 * edges, (len(one) + 1, *CAMERA.shape)).astype(np.uint8))
        buffers.append(buffer(one, {"arm": {"state": one.observations["state"]}, "camera": frames[-1]}))
    source = read_minari(save(buffers, observation_space=space, action_space=ACTION, jpeg_encoding=jpeg))
    assert source.observation_space == describe_observation(space)
    assert source.provenance.get("lossy") == ({"camera": "JPEG"} if jpeg else None)
    for (_, found), one, camera in zip(source.episodes(), originals, frames, strict=True):
        np.testing.assert_array_equal(found.observations["arm/state"], one.observations["state"])
        error = np.abs(found.observations["camera"].astype(int) - camera).mean(axis=(1, 2, 3))
        assert error.max() <= (8 if jpeg else 0)  # neighbouring frames differ by 20


def test_tuples_text_and_actions_of_several_parts(save):
    originals = episodes((4, 2))
    observed = spaces.Tuple((STATE, spaces.Dict({"speed": STATE, "task": spaces.Text(8)})))
    action = spaces.Dict({"grip": spaces.Box(0, 1, (2,), np.float32), "move": ACTION})
    buffers = []
    for one in originals:
        state, steps = one.observations["state"], len(one)
        part = (state, {"speed": 2 * state, "task": ["go"] * (steps + 1)})
        taken = {"grip": np.full((steps, 2), 0.5, np.float32), "move": one.actions}
        buffers.append(replace(buffer(one, part), actions=taken))
    path = save(buffers, observation_space=observed, action_space=action)
    source = open_source(path)
    assert source.provenance["left_out"] == {"observations/_index_1/task": "Text, no numbers"}
    assert source.action_space == describe(spaces.Box(np.array([0, 0, -2]), np.array([1, 1, 2]), (3,), np.float32))
    for (_, found), one in zip(source.episodes(), originals, strict=True):
        np.testing.assert_array_equal(found.observations["0"], one.observations["state"])
        np.testing.assert_array_equal(found.observations["1/speed"], 2 * one.observations["state"])
        np.testing.assert_array_equal(
            found.actions, np.concatenate([np.full_like(one.actions, 0.5)] * 2 + [one.actions], 1)
        )
    moved = open_source(path, action="move", observations="0", rename="0=state")
    assert_same([one for _, one in moved.episodes()], [only(one, state="state") for one in originals])
    for how, message in [({"observations": "1/task"}, "task cannot be read .Text"), ({"action": "grp"}, "mean 'grip'")]:
        with pytest.raises(UserError, match=message):
            open_source(path, **how)


def test_discrete_actions_of_several_parts(save):
    (one,) = episodes((4,))
    action = spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4])))
    taken = (np.array([5, 6, 7, 5]), np.array([[0, 3], [1, 0], [0, 1], [1, 2]]))
    source = open_source(save([replace(buffer(one), actions=taken)], observation_space=STATE, action_space=action))
    assert source.action_space == {"type": "MultiDiscrete", "nvec": [3, 2, 4]}
    ((_, found),) = source.episodes()
    assert found.actions.tolist() == [[0, 0, 3], [1, 1, 0], [2, 0, 1], [0, 1, 2]]


def test_a_mixture_of_actions_is_chosen_from(save):
    (one,) = episodes((4,))
    action = spaces.Dict({"move": ACTION, "button": spaces.Discrete(2)})
    taken = {"move": one.actions, "button": np.zeros(4, int)}
    path = save([replace(buffer(one), actions=taken)], observation_space=STATE, action_space=action)
    with pytest.raises(UserError, match="parts button .Discrete., move .Box. do not make one vector: .*--action"):
        open_source(path)
    assert open_source(path, action="move").action_space == describe(ACTION)


def test_additional_files_are_read_after_the_main_one(toy_folder):
    with (
        h5py.File(toy_folder / "data/main_data.hdf5", "r+") as main,
        h5py.File(toy_folder / "data/additional_data_0.hdf5", "w") as more,
    ):
        for name in ("episode_2", "episode_3"):
            main.copy(name, more)
            del main[name]
    assert_same(read(toy_folder), [only(one, observation="state") for one in episodes()])


def test_missing_episodes_are_an_error(toy_folder):
    with h5py.File(toy_folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_2"]
    with pytest.raises(UserError, match="names 4 episodes, its .hdf5 files hold 3"):
        read_minari(toy_folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda group: group.__delitem__("rewards"), "main_data.hdf5, /episode_1: there is no dataset 'rewards'"),
        (
            lambda group: group["actions"].resize(4, axis=0),
            "main_data.hdf5: the dataset 'episode_1/actions' declares 16 bytes",
        ),
        (
            lambda group: group["observations"].resize(3, axis=0),
            "main_data.hdf5: the dataset 'episode_1/observations' declares",
        ),
        (lambda group: group["observations"].resize(1, axis=0), "main_data.hdf5, episode 1: it has no transition"),
    ],
)
def test_a_damaged_episode_is_named(toy_folder, harm, message):
    with h5py.File(toy_folder / "data/main_data.hdf5", "r+") as file:
        harm(file["episode_1"])
    with pytest.raises(UserError, match=message):
        read(toy_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_format": "arrow"}, "is stored as arrow; make it HDF5"),
        ({"observation_space": json.dumps({"type": "Text"})}, "observations cannot be read .Text, no numbers"),
        ({"action_space": json.dumps({"type": "Box", "dtype": "O"})}, "its action_space cannot be read"),
        ({"action_space": None}, "names no action_space"),
        ({"observation_space": json.dumps({"type": "MultiBinary", "n": 7})}, "the dataset's is"),
    ],
)
def test_metadata_that_cannot_serve(toy_folder, change, message):
    path = toy_folder / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read(toy_folder)


def test_a_link_to_another_file_is_refused(toy_folder):
    with h5py.File(toy_folder / "data/main_data.hdf5", "r+") as file:
        file["episode_4"] = h5py.ExternalLink("/etc/secret.hdf5", "/")
    with pytest.raises(UserError, match="link"):
        read_minari(toy_folder)


def test_the_fingerprint_follows_the_data(toy_folder):
    before = read_minari(toy_folder).fingerprint
    assert read_minari(toy_folder).fingerprint == before
    with h5py.File(toy_folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/rewards"][0] = 7
        file["episode_0/more"] = np.zeros(100)
    assert read_minari(toy_folder).fingerprint != before
