"""Batches from episodes: padding holds nothing of the data, ranks share the lanes, loaders draw nothing."""

import numpy as np
import pytest
import torch

from worldmodel import EpisodeDataModule
from worldmodel.data.episodes import Episodes
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.segments import Segments
from worldmodel.errors import UserError


def episodes_of(*transitions):
    frames = np.array(transitions) + 1
    total = int(frames.sum())
    ones = np.ones((total, 2), np.float32)
    return Episodes(ones, ones[:, :1], ones[:, 0], ones[:, 0] > 0, frames, [str(i) for i in range(len(frames))])


def test_padding_is_zero_whatever_stands_in_the_data():
    episodes = episodes_of(9, 3, 3)
    episodes.obs[0] = episodes.action[0] = episodes.reward[0] = np.nan  # the row that an index of 0 would pick
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
    episodes = episodes_of(*range(3, 20))
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


def test_statistics_are_the_training_splits(pendulum_data):
    data = EpisodeDataModule(pendulum_data)
    mean, std = data.statistics["obs"]
    np.testing.assert_allclose(mean, data.splits["train"].obs.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, data.splits["train"].obs.std(0), rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("lanes", -1)])
def test_wrong_sizes_are_named(toy_data, name, value):
    with pytest.raises(UserError, match=f"data.{name} is {value}"):
        EpisodeDataModule(toy_data, **{name: value})
