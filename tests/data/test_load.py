"""From disk to batches: memory, cache and decoding give the same, and the data may be larger than the memory."""

import pickle
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from memory import all_obs

from worldmodel import EpisodeDataModule
from worldmodel.data import spaces, statistics
from worldmodel.data.episode import Episode
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.rows import DiskRows
from worldmodel.data.writer import EpisodeWriter
from worldmodel.errors import UserError

SPACE = gym_spaces.Dict(
    {
        "camera": gym_spaces.Box(0, 255, (16, 12, 3), np.uint8),
        "goal": gym_spaces.Discrete(3),
        "speed": gym_spaces.Box(-9, 9, (2,)),
        "wrist": gym_spaces.Box(0, 255, (1, 9, 10), np.uint8),
    }
)
SPACES = {
    "observation_space": spaces.describe_observation(SPACE),
    "action_space": spaces.describe(gym_spaces.MultiDiscrete([2, 3])),
}


def episode(length, seed=0):
    rng = np.random.default_rng([seed, length])
    observations = {
        "camera": rng.integers(0, 256, (length + 1, 16, 12, 3), dtype=np.uint8),
        "goal": rng.integers(0, 3, length + 1),
        "speed": rng.standard_normal((length + 1, 2)).astype(np.float32),
        "wrist": rng.integers(0, 256, (length + 1, 1, 9, 10), dtype=np.uint8),
    }
    return Episode(observations, rng.integers(0, 2, (length, 2)), rng.standard_normal(length), length % 2 == 0, True)


def write(folder, episodes, manifest=SPACES, **options):
    writer = EpisodeWriter(folder, manifest, **options)
    for one in episodes:
        writer.add(one)
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    # pieces of long episodes in several shards
    folder = tmp_path_factory.mktemp("load") / "mixed"
    return write(folder, [episode(n) for n in (30, 5, 17, 1, 40, 22, 9)], shard_bytes=8000)


@pytest.fixture
def mixed(written, tmp_path):
    """A copy, since caches are made in it."""
    return shutil.copytree(written, tmp_path / "mixed")


def batches(data):
    loader = data.train_dataloader()
    every = iter(loader)
    return [data.on_after_batch_transfer(next(every), 0) for _ in range(len(loader))]


def episodes_in(folder, names):
    return [one for name, one in open_dataset(folder).episodes() if name in names]


OPTIONS = {"steps": 6, "lanes": 2}


def test_a_row_holds_what_the_episode_held(mixed):
    data = EpisodeDataModule(mixed, **OPTIONS)
    assert (data.obs_dim, data.images, data.action_dim) == (5 + 576 + 90, [(16, 12, 3), (9, 10, 1)], 5)
    written = {f"{name}": one for name, one in open_dataset(mixed).episodes()}
    for split in data.splits.values():
        for i, name in enumerate(split.names):
            one, rows = written[name], split.rows(i)
            obs = split.obs(rows)
            np.testing.assert_array_equal(obs[:, :3].argmax(1), one.observations["goal"])
            np.testing.assert_array_equal(obs[:, 3:5], one.observations["speed"])
            np.testing.assert_array_equal(obs[:, 5:581].reshape(-1, 16, 12, 3), one.observations["camera"])
            np.testing.assert_array_equal(obs[:, 581:].reshape(-1, 1, 9, 10), one.observations["wrist"])
            np.testing.assert_array_equal(split.reward(rows)[:-1], one.rewards.astype(np.float32))
            action = split.action(rows)[:-1]
            np.testing.assert_array_equal(action[:, :2].argmax(1), one.actions[:, 0])
            np.testing.assert_array_equal(action[:, 2:].argmax(1), one.actions[:, 1])
            assert split.terminated(rows).tolist() == [False] * (len(one) - 1) + [one.terminated, False]
            assert not split.action(rows[-1:]).any() and split.reward(rows)[-1] == 0


@pytest.mark.parametrize("limited", [False, True])
def test_rows_on_disk_are_those_in_memory(tmp_path, monkeypatch, limited):
    """Through the memory map, and by position where the address space is limited."""
    limit = 1 << 40 if limited else resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    table = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    table.tofile(tmp_path / "rows")
    rows = DiskRows(tmp_path / "rows", 3, np.float32)
    assert (rows._map is None) == limited
    for numbers in ([[3, 4, 5], [49, 0, 1]], [[7, 7, 8]], np.arange(50)[None], np.zeros((0, 2))):
        numbers = np.asarray(numbers, dtype=np.int64)
        np.testing.assert_array_equal(rows.take(numbers), table[numbers])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows)).take(numbers), table[numbers])


@pytest.mark.parametrize("how", [{"memory_gb": 0}, {"decode": True}, {"decode": True, "num_workers": 2}], ids=str)
def test_however_it_is_read_the_batches_are_the_same(mixed, how):
    expected, actual = (batches(EpisodeDataModule(mixed, **OPTIONS, **more)) for more in ({}, how))
    assert len(expected) == len(actual) > 3
    for one, other in zip(expected, actual, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name
    statistics = [EpisodeDataModule(mixed, **OPTIONS, **more).statistics for more in ({}, how)]
    for name, moments in statistics[0].items():
        assert all(torch.equal(a, b) for a, b in zip(moments, statistics[1][name], strict=True)), name


def test_the_cache_is_used_again_until_the_data_changes(mixed):
    def obs():
        return all_obs(EpisodeDataModule(mixed, memory_gb=0).splits["train"])

    first = obs()
    (made,) = (mixed / ".worldmodel-cache" / "mixed").glob("*/")
    stamp = (made / "frames.f32").stat().st_mtime_ns
    np.testing.assert_array_equal(obs(), first)
    assert (made / "frames.f32").stat().st_mtime_ns == stamp, "it was read, not made anew"
    write(mixed, [episode(50)], append=True)
    assert len(obs()) != len(first)
    (other,) = (mixed / ".worldmodel-cache" / "mixed").glob("*/")
    assert other != made, "the one of the data as it was is gone"
    for name, content in (("frames.f32", b""), ("index.json", b"{"), ("index.json", b"{}")):
        (other / name).write_bytes(content)
        assert len(obs()) > 100, "one that was meddled with is made anew"


@pytest.mark.fault(7)
def test_no_flipped_bit_of_the_cache_trains(mixed, caplog, seen):
    """Every file of the cache, its index too, at places from the first to the last byte."""

    def obs():
        splits = EpisodeDataModule(mixed, memory_gb=0).splits
        return {name: (one.names, all_obs(one).tobytes()) for name, one in splits.items()}

    whole, flips = obs(), 0
    (folder,) = (mixed / ".worldmodel-cache" / "mixed").glob("*/")
    for name in sorted(path.name for path in folder.iterdir()):
        for share in (0.0, 0.3, 0.6, 0.99):
            content = bytearray((folder / name).read_bytes())
            content[int(share * len(content))] ^= 4
            (folder / name).write_bytes(content)
            caplog.clear()
            assert obs() == whole, (name, share)
            assert name.endswith(".sha256") or "was changed or damaged: it is not used" in caplog.text
            flips += 1
    seen(f"cache: {flips} flips, 0 silent: it is made anew")


def test_a_cache_that_cannot_be_written_is_named(mixed, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache .*file/mixed-\w+/\w+ cannot be written .*--data.cache_dir"):
        _ = EpisodeDataModule(mixed, memory_gb=0, cache_dir=tmp_path / "file").splits
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        _ = EpisodeDataModule(mixed, memory_gb=0, cache_dir=tmp_path / ("n" * 300)).splits


def test_caches_of_other_keys_stay(mixed):
    for keys in (["speed"], ["camera"], ["speed"]):
        _ = EpisodeDataModule(mixed, memory_gb=0, observations=keys).splits
    assert len(list((mixed / ".worldmodel-cache" / "mixed").glob("*/"))) == 2


def test_what_lies_beside_the_cache_stays(mixed, tmp_path):
    thesis = tmp_path / "scratch" / "thesis"
    thesis.mkdir(parents=True)
    other = tmp_path / "scratch" / "mixed" / "own"
    other.mkdir(parents=True)
    for lengths in ((7,), (8,)):  # each time the data is another, and the cache made anew
        _ = EpisodeDataModule(mixed, memory_gb=0, cache_dir=tmp_path / "scratch").splits
        write(mixed, [episode(n) for n in lengths], append=True)
    assert thesis.exists() and other.exists()
    (mixed / ".worldmodel-cache").mkdir(exist_ok=True)
    (mixed / ".worldmodel-cache" / "mixed").symlink_to(thesis)
    with pytest.raises(UserError, match="cache .* is a link: remove it"):
        _ = EpisodeDataModule(mixed, memory_gb=0).splits


def test_a_cache_in_use_survives_that_it_is_replaced(mixed):
    data = EpisodeDataModule(mixed, memory_gb=0, **OPTIONS)
    before = all_obs(data.splits["train"])
    write(mixed, [episode(12)], append=True)
    _ = EpisodeDataModule(mixed, memory_gb=0, **OPTIONS).splits
    np.testing.assert_array_equal(all_obs(data.splits["train"]), before)


def test_a_build_that_fails_leaves_nothing(mixed):
    (mixed / sorted(p.name for p in mixed.glob("*.h5"))[-1]).unlink()
    with pytest.raises(UserError, match="is missing"):
        _ = EpisodeDataModule(mixed, memory_gb=0).splits
    assert not list((mixed / ".worldmodel-cache" / "mixed").glob("*/"))


def test_some_keys_of_a_dict_observation(mixed):
    data = EpisodeDataModule(mixed, observations=["wrist", "speed"], **OPTIONS)
    assert (data.obs_dim, data.images) == (2 + 90, [(9, 10, 1)])
    whole = EpisodeDataModule(mixed, **OPTIONS)
    np.testing.assert_array_equal(
        all_obs(data.splits["train"]), all_obs(whole.splits["train"])[:, [3, 4, *range(581, 671)]]
    )
    with pytest.raises(UserError, match="there is no observation 'wirst' to read; did you mean 'wrist'"):
        _ = EpisodeDataModule(mixed, observations=["wirst"]).layout
    skipped = EpisodeDataModule(mixed, skip="camera", decode=True, **OPTIONS)
    assert "camera" not in skipped.layout.observation_space and len(skipped.episodes)
    for how in ({"rename": "wrist=w"}, {"image_size": 16}):
        with pytest.raises(UserError, match="data.decode reads images as they are stored: leave out rename"):
            _ = EpisodeDataModule(mixed, decode=True, **how, **OPTIONS).episodes


@pytest.mark.parametrize("block", [None, 20])
def test_statistics_of_every_kind_of_entry(mixed, monkeypatch, block):
    if block:  # rows are read in several blocks
        monkeypatch.setattr(statistics, "BLOCK", block)
    data = EpisodeDataModule(mixed, **OPTIONS)
    mean, std = (part.numpy() for part in data.statistics["obs"])
    obs = all_obs(data.splits["train"])
    assert (mean[:3] == 0).all() and (std[:3] == 1).all(), "one-hot entries keep their units"
    np.testing.assert_allclose(mean[3:], obs[:, 3:].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std[3:5], obs[:, 3:5].std(0), rtol=1e-4)
    rewards = np.concatenate([one.rewards for one in episodes_in(mixed, data.splits["train"].names)])
    assert data.statistics["reward"][0].item() == pytest.approx(rewards.mean(), abs=1e-6)
    assert data.statistics["reward"][1].item() == pytest.approx(rewards.std(), rel=1e-4)
    for some in (slice(5, 581), slice(581, None)):
        np.testing.assert_allclose(std[some], np.sqrt(obs[:, some].var(0).mean()), rtol=1e-4)


def test_the_deviation_of_a_rare_reward_is_at_least_an_eighth_of_its_range(tmp_path):
    rare = [replace(episode(n), rewards=np.where(np.arange(n) < n - 1, 0.0, 2.0)) for n in (400, 401, 402)]
    data = EpisodeDataModule(write(tmp_path / "rare", rare), **OPTIONS)
    assert data.statistics["reward"][1].item() == pytest.approx(2 / 8)  # it is 0.1


@pytest.mark.fault(9)
def test_non_finite_values_are_named_or_skipped(tmp_path, seen):
    bad = episode(5)
    bad.observations["speed"][2, 1] = np.nan
    folder = write(tmp_path / "d", [episode(4), bad, episode(6), episode(7)])
    with pytest.raises(UserError, match=r"episodes-00000.h5, episode 1, step 2: the observation is not finite"):
        _ = EpisodeDataModule(folder).splits
    kept = EpisodeDataModule(folder, non_finite="skip").splits
    assert sum(map(len, kept.values())) == 3 and all(np.isfinite(all_obs(split)).all() for split in kept.values())
    seen("in the data: file, episode and step named; --data.non_finite skip leaves the episode out")


def test_decoding_needs_images_of_our_own(toy_data):
    with pytest.raises(UserError, match="data.decode is for images, and .* holds none"):
        _ = EpisodeDataModule(toy_data, decode=True).splits


CAPPED = """
import os, resource, sys, warnings
from pathlib import Path
import lightning.pytorch as pl
import torch
from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks import RolloutEvaluation, TruncatedBPTT

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
room = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
pl.seed_everything(0, verbose=False)
data = EpisodeDataModule(Path(sys.argv[1]), steps=8, lanes=4, memory_gb=0.02, decode=sys.argv[3] == "decode")
model = WorldModel(data.obs_dim, data.action_dim, data.images, channels=2, width=16)
trainer = pl.Trainer(
    accelerator="cpu", devices=1, max_steps=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    callbacks=[TruncatedBPTT(), RolloutEvaluation(multiples=[1], max_episodes=1)], use_distributed_sampler=False,
    enable_model_summary=False, limit_val_batches=3,
)
trainer.fit(model, data)
print("trained", trainer.global_step)
"""


@pytest.mark.full
@pytest.mark.fault(18)
@pytest.mark.parametrize("way", ["cache", "decode"])
def test_a_dataset_three_times_larger_than_the_room_for_it_trains(tmp_path, seen, way):
    """`ulimit -v` leaves 320 MB beside the program itself, the data is 960 MB unpacked."""
    room, side, length = 320 << 20, 128, 100
    manifest = {
        "observation_space": {"image": spaces.describe(gym_spaces.Box(0, 255, (side, side, 3), np.uint8))},
        "action_space": spaces.describe(gym_spaces.Box(-1, 1, (1,))),
    }
    frames = np.zeros((length + 1, side, side, 3), np.uint8)
    frames[np.arange(length + 1), np.arange(length + 1)] = 200

    def one(i):
        return Episode({"image": np.roll(frames, i, 1)}, np.zeros((length, 1)), np.zeros(length), False, True)

    count = 3 * room // frames.nbytes + 1
    folder = write(tmp_path / "d", (one(i) for i in range(count)), manifest)
    command = [sys.executable, "-c", CAPPED, str(folder), str(room), way]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0 and "trained 20" in process.stdout, process.stderr[-2000:]
    seen(f"three times the room that ulimit -v leaves ({way}): it trains")
