"""Datasets on disk: exactly what was written comes back, and what is wrong is named."""

import json

import h5py
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from worldmodel.data import spaces
from worldmodel.data.durable import sha256, whole_file
from worldmodel.data.episodes import Episode
from worldmodel.data.store import EpisodeWriter, load_episodes, read_file, read_manifest
from worldmodel.errors import UserError

SPACES = {
    "observation_space": spaces.describe(gym_spaces.Box(-np.inf, np.inf, (3,), np.float64)),
    "action_space": spaces.describe(gym_spaces.Discrete(4, start=1)),
}


def episode(length, seed=0):
    rng = np.random.default_rng([seed, length])
    observations = rng.standard_normal((length + 1, 3))
    return Episode(
        observations, rng.integers(1, 5, length), rng.standard_normal(length), length % 2 == 0, length % 2 == 1
    )


def write(folder, episodes, **options):
    writer = EpisodeWriter(folder, SPACES, **options)
    for one in episodes:
        writer.add(one)
    writer.finish()
    return folder


def refresh_checksum(folder):
    """Make the manifest agree with a file that a test has changed on purpose."""
    manifest = read_manifest(folder)
    manifest["files"][0]["sha256"] = sha256(folder / manifest["files"][0]["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip(tmp_path):
    written = [episode(length) for length in (1, 5, 2, 40, 3)]
    folder = write(tmp_path / "d", written, steps_per_file=10)
    manifest = read_manifest(folder)
    assert (manifest["episodes"], manifest["steps"], len(manifest["files"])) == (5, 51, 2)
    read = [e for entry in manifest["files"] for e in read_file(folder, entry)]
    for before, after in zip(written, read, strict=True):
        np.testing.assert_array_equal(before.observations, after.observations)
        np.testing.assert_array_equal(before.actions, after.actions)
        np.testing.assert_array_equal(before.rewards, after.rewards)
        assert (before.terminated, before.truncated) == (after.terminated, after.truncated)


def test_in_memory_rows(tmp_path):
    written = [episode(length) for length in (1, 4, 3)]
    episodes, skipped = load_episodes(write(tmp_path / "d", written))
    assert (len(episodes), skipped, episodes.num_transitions) == (3, 0, 8)
    for i, one in enumerate(written):
        rows = episodes.rows(i)
        np.testing.assert_array_equal(episodes.obs[rows], one.observations.astype(np.float32))
        np.testing.assert_array_equal(episodes.action[rows][:-1].argmax(1) + 1, one.actions)
        assert not episodes.action[rows][-1].any() and episodes.reward[rows][-1] == 0
        assert episodes.terminated[rows].tolist() == [False] * (len(one) - 1) + [one.terminated, False]
    chosen = episodes.select([2, 0])
    np.testing.assert_array_equal(chosen.obs[chosen.rows(0)], episodes.obs[episodes.rows(2)])
    np.testing.assert_array_equal(chosen.obs[chosen.rows(1)], episodes.obs[episodes.rows(0)])


def test_every_space_becomes_a_vector():
    cases = [
        (gym_spaces.Box(-1, 1, (2, 3)), np.zeros((5, 2, 3)), 6),
        (gym_spaces.Discrete(3), np.array([0, 2, 1, 1, 0]), 3),
        (gym_spaces.MultiDiscrete([2, 3]), np.array([[0, 2]] * 5), 5),
        (gym_spaces.MultiBinary(4), np.ones((5, 4)), 4),
    ]
    for space, values, size in cases:
        described = json.loads(json.dumps(spaces.describe(space)))
        made = spaces.features(values, described)
        assert made.shape == (5, size) == (5, spaces.num_features(described)) and made.dtype == np.float32
    assert spaces.features(np.array([[0, 2]]), spaces.describe(gym_spaces.MultiDiscrete([2, 3]))).tolist() == [
        [1, 0, 0, 0, 1]
    ]
    with pytest.raises(UserError, match="Dict space is not supported"):
        spaces.describe(gym_spaces.Dict({}))


def test_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with whole_file(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_without_a_manifest_are_no_dataset(tmp_path):
    writer = EpisodeWriter(tmp_path / "d", SPACES, steps_per_file=1)
    writer.add(episode(3))  # a file is there, and then the process dies
    assert list((tmp_path / "d").glob("*.h5"))
    with pytest.raises(UserError, match="no dataset at .*worldmodel collect"):
        load_episodes(tmp_path / "d")


def test_a_folder_is_written_once(tmp_path):
    folder = write(tmp_path / "d", [episode(3)])
    with pytest.raises(UserError, match="already holds a dataset"):
        EpisodeWriter(folder, SPACES)


def test_every_flipped_byte_is_noticed(tmp_path):
    folder = write(tmp_path / "d", [episode(20)])
    path = folder / "episodes-00000.h5"
    good = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(good), 50):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"episodes-00000.h5 was changed or damaged"):
            load_episodes(folder)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="changed or damaged"):
        load_episodes(folder)
    path.unlink()
    with pytest.raises(UserError, match="is missing, but the manifest lists it"):
        load_episodes(folder)


def test_non_finite_values_are_named_or_skipped(tmp_path):
    bad = episode(5)
    bad.observations[2, 1] = np.nan
    folder = write(tmp_path / "d", [episode(4), bad, episode(6)])
    with pytest.raises(UserError, match=r"episodes-00000.h5, episode 1, step 2: the observation is not finite"):
        load_episodes(folder)
    episodes, skipped = load_episodes(folder, "skip")
    assert (len(episodes), skipped) == (2, 1) and np.isfinite(episodes.obs).all()


def test_contradictions_are_named(tmp_path):
    folder = write(tmp_path / "d", [episode(4), episode(5)])
    with h5py.File(folder / "episodes-00000.h5", "r+") as file:
        file["lengths"][...] = [4, 6]
    refresh_checksum(folder)
    with pytest.raises(UserError, match="do not fit 2 episodes"):
        load_episodes(folder)
    with h5py.File(folder / "episodes-00000.h5", "r+") as file:
        file["lengths"][...] = [9, 0]
    refresh_checksum(folder)
    with pytest.raises(UserError, match="episode 1: it has one observation and no transition"):
        load_episodes(folder)


def test_an_empty_dataset_and_a_broken_manifest(tmp_path):
    with pytest.raises(UserError, match="holds no episodes"):
        load_episodes(write(tmp_path / "d", []))
    (tmp_path / "d" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_episodes(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a worldmodel-episodes manifest"):
        load_episodes(tmp_path / "d")
