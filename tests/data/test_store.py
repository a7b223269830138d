"""Datasets on disk: exactly what was written comes back, nothing acknowledged is lost, what is wrong is named."""

import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from worldmodel.data import shards, spaces
from worldmodel.data import writer as writer_room
from worldmodel.data.episode import Episode
from worldmodel.data.manifest import read_manifest, sealed, write_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.writer import EpisodeWriter, compact
from worldmodel.durable import sha256, whole_file
from worldmodel.errors import UserError

SPACES = {
    "observation_space": spaces.describe_observation(
        gym_spaces.Dict(
            {
                "arm": gym_spaces.Dict({"angle": gym_spaces.Box(-np.inf, np.inf, (3,), np.float64)}),
                "camera": gym_spaces.Box(0, 255, (16, 12, 3), np.uint8),
            }
        )
    ),
    "action_space": spaces.describe(gym_spaces.Discrete(4, start=1)),
}


def episode(length, seed=0):
    rng = np.random.default_rng([seed, length])
    frames = rng.integers(0, 256, (length + 1, 16, 12, 3), dtype=np.uint8)
    observations = {"arm/angle": rng.standard_normal((length + 1, 3)), "camera": frames}
    ends = length % 2 == 0, length % 2 == 1
    return Episode(observations, rng.integers(1, 5, length), rng.standard_normal(length), *ends, rate=20.0)


def write(folder, episodes, **options):
    writer = EpisodeWriter(folder, SPACES, **options)
    for one in episodes:
        writer.add(one)
    writer.finish()
    return folder


def read(folder):
    return [one for _, one in open_dataset(folder).episodes()]


def assert_equal(first, second):
    assert first.observations.keys() == second.observations.keys()
    for key, values in first.observations.items():
        np.testing.assert_array_equal(values, second.observations[key])
        assert values.dtype == second.observations[key].dtype
    np.testing.assert_array_equal(first.actions, second.actions)
    np.testing.assert_array_equal(first.rewards, second.rewards)
    ends = [(one.terminated, one.truncated, one.rate) for one in (first, second)]
    assert ends[0] == ends[1]


LENGTHS = (1, 5, 2, 40, 3)


# what each option does: many shards; parts of one episode in several shards; a file an episode, merged at the end
@pytest.mark.parametrize(
    ("options", "files"),
    [({}, 1), ({"shard_bytes": 20_000}, 3), ({"shard_bytes": 3000}, 15), ({"flush_seconds": 0}, 1)],
)
def test_round_trip(tmp_path, options, files):
    written = [episode(length) for length in LENGTHS]
    folder = write(tmp_path / "d", written, **options)
    manifest = read_manifest(folder)
    assert (manifest["episodes"], manifest["steps"], manifest["complete"]) == (5, 51, True)
    for before, after in zip(written, read(folder), strict=True):
        assert_equal(before, after)
    listed = {entry["name"] for entry in manifest["files"]} | {"manifest.json"}
    assert {path.name for path in folder.iterdir()} == listed and all("part" not in name for name in listed)
    assert len(listed) == files + 1


def test_a_shard_is_filled_to_its_limit(tmp_path):
    written = [episode(5, seed) for seed in range(3)]
    folder = write(tmp_path / "d", written, shard_bytes=2 * shards.num_bytes(written[0]))
    assert [entry["episodes"] for entry in read_manifest(folder)["files"]] == [2, 1]


def test_without_hdf5plugin_lzf_serves(tmp_path, monkeypatch):
    written = [episode(length) for length in LENGTHS]
    zstd = write(tmp_path / "zstd", written)
    monkeypatch.setattr(shards, "has_zstd", lambda: False)
    lzf = write(tmp_path / "lzf", written)
    codes = []
    for folder in (zstd, lzf):
        with h5py.File(folder / "episodes-00000.h5") as file:
            plist = file["observations/camera"].id.get_create_plist()
            codes.append({plist.get_filter(i)[0] for i in range(plist.get_nfilters())})
            assert file["observations/camera"].chunks[0] == 16
            every = []
            file.visititems(lambda name, item, seen=every: seen.append(item))
            assert all(item.fletcher32 for item in every if isinstance(item, h5py.Dataset)), "fletcher32 everywhere"
    assert codes == [{32015, h5py.h5z.FILTER_FLETCHER32}, {32000, h5py.h5z.FILTER_FLETCHER32}]
    for before, after in zip(read(zstd), read(lzf), strict=True):
        assert_equal(before, after)


def test_appending_extends(tmp_path):
    folder = write(tmp_path / "d", [episode(4), episode(5)])
    first = read_manifest(folder)["files"]
    write(folder, [episode(6)], append=True)
    assert read_manifest(folder)["files"][:1] == first, "what was there stays as it is"
    assert [len(one) for one in read(folder)] == [4, 5, 6]
    compact(folder)
    assert [len(one) for one in read(folder)] == [4, 5, 6] and len(read_manifest(folder)["files"]) == 1
    assert len(list(folder.glob("*.h5"))) == 1


def test_another_dataset_is_not_overwritten(tmp_path):
    folder = write(tmp_path / "d", [episode(3)])
    with pytest.raises(UserError, match=r"already holds a dataset \(1 episodes\).*--append"):
        EpisodeWriter(folder, SPACES)
    other = SPACES | {"action_space": {"type": "Discrete", "n": 5, "start": 0}}
    with pytest.raises(UserError, match="episodes of another action space"):
        EpisodeWriter(folder, other, append=True)
    wrong = Episode({"camera": np.zeros((2, 16, 12, 3), np.uint8)}, np.ones(1), np.ones(1), False, True)
    writer = EpisodeWriter(folder, SPACES, append=True)
    with pytest.raises(UserError, match="has the observations camera; it must have arm/angle, camera"):
        writer.add(wrong)


def test_a_flush_acknowledges(tmp_path):
    writer = EpisodeWriter(tmp_path / "d", SPACES, flush_seconds=1e9)
    writer.add(episode(3))
    assert writer.episodes == 0 and read(tmp_path / "d") == []
    assert writer.flush() == 1 and [len(one) for one in read(tmp_path / "d")] == [3]
    assert not read_manifest(tmp_path / "d")["complete"]


def test_an_episode_waits_about_a_second(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(writer_room.time, "monotonic", lambda: now)
    writer = EpisodeWriter(tmp_path / "d", SPACES)
    counts = []
    for now in (0.0, 0.9, 1.0, 1.9):  # noqa: B007  read by the clock
        writer.add(episode(3))
        counts.append(writer.episodes)
    assert counts == [0, 0, 3, 3]
    writer.close()


HOLD = """
import sys, time
from pathlib import Path
from tests.data.test_store import SPACES, EpisodeWriter, episode
writer = EpisodeWriter(Path(sys.argv[1]), SPACES, append=True)
writer.add(episode(7)); writer.flush(); writer.add(episode(8))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.fault(15)
def test_a_second_writer_is_refused_and_a_dead_one_makes_room(tmp_path, seen):
    folder = write(tmp_path / "d", [episode(3)])
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=rf"process {process.pid} on \S+ is writing to"):
            EpisodeWriter(folder, SPACES, append=True)
        with pytest.raises(UserError, match=rf"process {process.pid}"):
            compact(folder)
        process.kill()
    assert [len(one) for one in read(folder)] == [3, 7], "what was acknowledged, and nothing else"
    (folder / "part-00009.h5").write_bytes(b"left behind")
    write(folder, [episode(2)], append=True)
    assert [len(one) for one in read(folder)] == [3, 7, 2]
    assert not list(folder.glob("part-*")) and not list(folder.glob(".*"))
    seen("writers of a dataset: the second is refused, the process named; a killed one makes room")


def test_every_space_becomes_a_vector():
    cases = [
        (gym_spaces.Box(-1, 1, (2, 3)), np.zeros((5, 2, 3)), 6),
        (gym_spaces.Discrete(3), np.array([0, 2, 1, 1, 0]), 3),
        (gym_spaces.MultiDiscrete([2, 3]), np.array([[0, 2]] * 5), 5),
        (gym_spaces.MultiBinary(4), np.ones((5, 4)), 4),
        (gym_spaces.Box(0, 255, (7, 7, 3), np.uint8), np.ones((5, 7, 7, 3)), 147),  # too small for an image
    ]
    for space, values, size in cases:
        described = json.loads(json.dumps(spaces.describe(space)))
        made = spaces.features(values, described)
        assert made.shape == (5, size) == (5, spaces.num_features(described)) and made.dtype == np.float32
        assert spaces.image_shape(described) is None
    assert spaces.features(np.array([[0, 2]]), spaces.describe(gym_spaces.MultiDiscrete([2, 3]))).tolist() == [
        [1, 0, 0, 0, 1]
    ]
    with pytest.raises(UserError, match="Text space is not supported"):
        spaces.describe(gym_spaces.Text(3))


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 3), (4, 64, 48), (3, 16, 16)])
def test_images_become_rows_with_the_channels_last(shape):
    leaf = spaces.describe(gym_spaces.Box(0, 255, shape, np.uint8))
    h, w, c = spaces.image_shape(leaf)
    assert (h, w) == ((16, 16) if shape == (3, 16, 16) else (64, 48))
    values = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    rows = spaces.images_of(values, leaf)
    expected = values.transpose(0, 2, 3, 1) if shape[0] in (3, 4) else values.reshape(5, h, w, c)
    np.testing.assert_array_equal(rows, expected)


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


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path / "d", [episode(20)])
    (folder / "episodes-00000.h5").unlink()
    with pytest.raises(UserError, match="episodes-00000.h5 is missing, and its episodes 0 to 0 with it"):
        read(folder)


def test_contradictions_are_named(tmp_path):
    folder = write(tmp_path / "d", [episode(4), episode(5)])
    path = folder / "episodes-00000.h5"
    for lengths, message in (([4, 6], "do not fit 2 episodes"), ([9, 0], "episode 1: it has one observation")):
        with h5py.File(path, "r+") as file:
            file["lengths"][...] = lengths
        manifest = read_manifest(folder)  # which agrees, as a hostile one would
        manifest["files"][0] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
        write_manifest(folder, manifest)
        with pytest.raises(UserError, match=message):
            read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"files": "x"}, "files must be a list"),
        (lambda m: m | {"files": [{"name": 3}]}, "entry 0 of files must have name"),
        (lambda m: m | {"observation_space": None}, "must name at least one key"),
        (lambda m: m | {"observation_space": {"o": {"type": "Bix"}}}, "observation_space, o: .* its type must be"),
        (lambda m: m | {"action_space": {"type": "Box", "shape": [-1], "dtype": "f4"}}, "sizes of the Box space are"),
        (lambda m: m | {"action_space": {"type": "Discrete", "n": 2, "start": None}}, "first value of the Discrete"),
        (lambda m: {k: v for k, v in m.items() if k != "action_space"}, "lacks action_space"),
        (lambda m: m | {"files": [m["files"][0] | {"name": "../other/episodes-00000.h5"}]}, "not lie in its folder"),
        (lambda m: m | {"files": [m["files"][0] | {"name": "link.h5"}]}, "'link.h5', which does not lie in its folder"),
    ],
)
def test_a_manifest_that_is_wrong_is_named(tmp_path, change, message):
    folder, other = write(tmp_path / "d", [episode(3)]), write(tmp_path / "other", [episode(3)])
    (folder / "link.h5").symlink_to(other / "episodes-00000.h5")
    (folder / "manifest.json").write_text(sealed(change(read_manifest(folder))))  # its own sum is right
    with pytest.raises(UserError, match=message):
        open_dataset(folder)


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(UserError, match="does not exist; make one with `worldmodel collect"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no manifest.json"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a worldmodel-episodes manifest"):
        open_dataset(tmp_path)


def test_values_that_do_not_fit_are_refused_and_none_is_cut(tmp_path):
    writer = EpisodeWriter(tmp_path / "d", SPACES)
    writer.add(episode(3))
    for change, message in (
        ({"actions": np.array([1, 2, 7])}, r"actions hold 1 to 7 \(int64\), their space has 1 to 4"),
        ({"actions": np.array([[1], [2], [3]])}, r"actions are of shape \[1\], their space is of \[\]"),
        ({"observations": episode(3).observations | {"camera": np.zeros((4, 16, 12, 3))}}, "images must be uint8"),
        (
            {"observations": episode(3).observations | {"arm/angle": np.zeros((4, 3), np.longdouble)}},
            "arm/angle are .*, the dataset keeps float64: use one type",
        ),
    ):
        with pytest.raises(UserError, match=message):
            writer.add(replace(episode(3), **change))
    writer.add(replace(episode(3), rewards=np.array([1, 2, 3])))  # whole numbers among others stay what they are
    writer.add(replace(episode(3), rewards=np.array([0.25, 0.5, 0.1])))
    writer.finish()
    assert [one.rewards.tolist() for one in read(tmp_path / "d")[1:]] == [[1, 2, 3], [0.25, 0.5, 0.1]]


def test_files_that_are_not_ours_stay(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "episodes-2024.hdf5").write_text("a recording of years")
    (folder / ".notes.partial").write_text("notes")
    write(folder, [episode(3)])
    write(folder, [episode(4)], append=True)
    assert (folder / "episodes-2024.hdf5").exists() and (folder / ".notes.partial").exists()
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds episodes-0000\d.h5 of a dataset that has lost its manifest.json"):
        EpisodeWriter(folder, SPACES)
    assert len(list(folder.glob("episodes-0000*.h5"))) == 2


def test_the_fingerprint_is_of_the_episodes_not_of_the_files(tmp_path):
    many = write(tmp_path / "many", [episode(n) for n in (3, 4, 5)], shard_bytes=3000)
    one = write(tmp_path / "one", [episode(n) for n in (3, 4, 5)], shard_bytes=3000)
    compact(one, shard_bytes=20_000)
    assert len(read_manifest(many)["files"]) > len(read_manifest(one)["files"])
    assert open_dataset(many).fingerprint == open_dataset(one).fingerprint
    other = write(tmp_path / "other", [episode(n) for n in (4, 3, 5)], shard_bytes=3000)
    assert open_dataset(many).fingerprint != open_dataset(other).fingerprint


def test_a_reader_is_told_that_the_dataset_was_compacted(tmp_path):
    folder = write(tmp_path / "d", [episode(3), episode(4)], shard_bytes=3000)
    source = open_dataset(folder)
    compact(folder)
    with pytest.raises(UserError, match="was compacted or rewritten while it was read: read it again"):
        list(source.episodes())


def test_a_merge_that_fails_leaves_the_dataset_whole(tmp_path, monkeypatch, caplog):
    writer = EpisodeWriter(tmp_path / "d", SPACES, flush_seconds=0)
    for length in (3, 4):
        writer.add(episode(length))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_room, "write_shard", full)
    assert writer.finish()["complete"] and "but its parts were not merged (No space left" in caplog.text
    with pytest.raises(UserError, match="cannot be compacted .No space left on device.: nothing was changed"):
        compact(tmp_path / "d")
    monkeypatch.undo()
    assert [len(one) for one in read(tmp_path / "d")] == [3, 4]
    compact(tmp_path / "d")
    assert len(read_manifest(tmp_path / "d")["files"]) == 1
