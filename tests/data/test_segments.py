"""Batches from episodes: padding holds nothing of the data, ranks share the lanes, loaders draw nothing."""

import numpy as np
import pytest
import torch
from conftest import TOY
from memory import all_obs, episodes_of

from worldmodel import EpisodeDataModule
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.segments import Segments
from worldmodel.data.splits import split_episodes
from worldmodel.errors import UserError


def ones_of(*transitions):
    total = sum(transitions) + len(transitions)
    return episodes_of(np.ones((total, 2)), np.ones((total, 1)), transitions, np.ones(total), np.ones(total))


def test_padding_is_zero_whatever_stands_in_the_data():
    episodes = ones_of(9, 3, 3)
    episodes.frames[0] = np.nan  # the row that an index of 0 would pick
    segments = Segments(episodes, LaneSchedule(episodes.num_frames, 2, 4, shuffle=False))
    padded = 0
    for n in range(len(segments)):
        batch = segments[n]
        outside = batch["episode"] < 0
        padded += int(outside.sum())
        for name in ("action", "reward", "terminated"):
            assert not batch[name][~batch["valid"]].any(), name
        assert not batch["obs"][:, :-1][outside].any() and batch["is_first"][outside].all()
    assert padded > 0


def test_ranks_divide_the_lanes_and_agree_on_the_count():
    episodes = ones_of(*range(3, 20))
    schedule = LaneSchedule(episodes.num_frames, 4, 5)
    whole = Segments(episodes, schedule)
    parts = [Segments(episodes, schedule, rank, 2) for rank in range(2)]
    for n in range(len(whole)):
        one, halves = whole[n], [part[n] for part in parts]
        for name in ("obs", "episode", "step", "valid"):
            assert torch.equal(one[name], torch.cat([half[name] for half in halves])), name
        assert [half["num_valid"].item() for half in halves] == [one["valid"].sum().item() / 2] * 2


def test_loaders_draw_nothing_from_the_global_generator(toy_data):
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_are_whole_episodes_and_disjoint(toy_data):
    splits = EpisodeDataModule(toy_data, val_fraction=0.2, test_fraction=0.3).splits
    names = [name for split in splits.values() for name in split.names]
    assert len(names) == len(set(names)) and {len(s) > 0 for s in splits.values()} == {True}
    again = EpisodeDataModule(toy_data, val_fraction=0.2, test_fraction=0.3).splits
    assert all(list(splits[name].names) == list(again[name].names) for name in splits)


def test_every_split_has_an_episode():
    splits = split_episodes(3, 0.1, 0.1, seed=0)
    assert sorted(np.concatenate(list(splits.values()))) == [0, 1, 2] and [len(s) for s in splits.values()] == [1] * 3
    assert [len(split) for split in split_episodes(20, 0.15, 0.0, seed=0).values()] == [17, 3, 0]
    assert (split_episodes(20, 0.15, 0.0, seed=0)["val"] != split_episodes(20, 0.15, 0.0, seed=1)["val"]).any()
    with pytest.raises(UserError, match="holds 2 episodes: too few to split into training, 1 for validation and 1 for"):
        split_episodes(2, 0.1, 0.1, seed=0)


def test_a_dataset_of_its_own_for_the_test(toy_data, pendulum_data, tmp_path):
    shorter = TOY | {"steps": 90, "seed": 50, "max_episode_steps": 10}
    data = EpisodeDataModule(toy_data, val_fraction=0.2, test_path=tmp_path / "short", test_collect=shorter)
    with pytest.raises(UserError, match="short yet: call EpisodeDataModule.prepare_data"):
        _ = data.test_source
    data.prepare_data()
    splits, alone = data.splits, EpisodeDataModule(tmp_path / "short", val_fraction=0.2)
    assert len(splits["train"]) + len(splits["val"]) == data.source.provenance["episodes"]  # none is set aside
    assert splits["test"].num_transitions == 90 and splits["test"].num_frames.max() == 11
    everything = sorted(name for split in alone.splits.values() for name in split.names)
    assert sorted(splits["test"].names) == everything
    with pytest.raises(UserError, match=f"data.test_path {pendulum_data} has another observation_space"):
        _ = EpisodeDataModule(toy_data, test_path=pendulum_data).splits
    with pytest.raises(UserError, match="data.test_path must say where"):
        EpisodeDataModule(toy_data, test_collect=shorter)


def test_two_datasets_of_one_name_share_a_cache_folder_in_peace(toy_data, tmp_path):
    where = {"memory_gb": 0.0, "cache_dir": tmp_path / "cache"}
    other = tmp_path / "other" / toy_data.name
    data = EpisodeDataModule(toy_data, test_path=other, test_collect=TOY | {"seed": 50}, **where)
    data.prepare_data()
    assert len(data.splits["test"]) and len(list((tmp_path / "cache").glob("*/[!.]*"))) == 2
    one = data.splits["test"].obs(np.arange(3))
    np.testing.assert_array_equal(one, EpisodeDataModule(other, **where).splits["train"].obs(np.arange(3)))


def test_statistics_are_the_training_splits(pendulum_data):
    data = EpisodeDataModule(pendulum_data)
    mean, std = data.statistics["obs"]
    np.testing.assert_allclose(mean, all_obs(data.splits["train"]).mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, all_obs(data.splits["train"]).std(0), rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("lanes", -1)])
def test_wrong_sizes_are_named(toy_data, name, value):
    with pytest.raises(UserError, match=f"data.{name} is {value}"):
        EpisodeDataModule(toy_data, **{name: value})


def test_the_test_may_be_other_columns_of_the_same_file(tmp_path):
    columns = {"uEst": np.arange(60.0), "yEst": np.arange(60.0), "uVal": np.zeros(60), "yVal": 100 + np.arange(60.0)}
    path = tmp_path / "plant.csv"
    np.savetxt(path, np.stack([*columns.values()], axis=1), delimiter=",", header=",".join(columns), comments="")
    train, test = (
        {"observations": f"y{part}", "actions": [f"u{part}", f"u{part}_next"], "final_observation": "included"}
        for part in ("Est", "Val")
    )
    where = {"test_path": path, "test_schema": test, "cache_dir": tmp_path / "cache"}
    for memory_gb in (1.0, 0.0, 0.0):  # in memory, written to a cache, and read from it
        data = EpisodeDataModule(path, schema=train | {"episodes": {"lengths": 20}}, memory_gb=memory_gb, **where)
        assert sorted(map(len, data.splits.values())) == [1, 1, 2]
        rows = data.splits["test"].rows(0)
        assert data.splits["test"].obs(rows)[:, 0].tolist() == columns["yVal"].tolist()
        assert data.splits["train"].obs(data.splits["train"].rows(0)).max() < 60
    assert len(list((tmp_path / "cache").rglob("index.json"))) == 2
    with pytest.raises(UserError, match="data.test_path must say where"):
        EpisodeDataModule(path, schema=train, test_schema=test)
