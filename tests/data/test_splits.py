"""Folds for cross-validation: of whole episodes, and of blocks where there are few recordings."""

from pathlib import Path

import numpy as np
import pytest
from memory import episodes_of

from worldmodel import EpisodeDataModule
from worldmodel.data.episode import Episode
from worldmodel.data.spaces import box_of
from worldmodel.data.splits import split_episodes, split_folds
from worldmodel.data.writer import EpisodeWriter
from worldmodel.errors import UserError


def numbered(*lengths):
    """Episodes whose observation is the number of its row."""
    rows = np.arange(sum(lengths) + len(lengths), dtype=np.float32)[:, None]
    return episodes_of(rows, np.zeros_like(rows), lengths)


def rows_of(split):
    return [split.rows(i).tolist() for i in range(len(split))]


@pytest.mark.parametrize("shares", [(0.15, 0.15), (0.3, 0.0), (0.47, 0.47), (0.9, 0.05), (0.01, 0.01)], ids=str)
def test_episodes_that_are_added_move_none(shares):
    fewest, whole = 2 + (shares[1] > 0), split_episodes(120, *shares, seed=3)
    for episodes in range(fewest, 120):
        part = split_episodes(episodes, *shares, seed=3)
        for name, indices in part.items():
            assert indices.tolist() == [i for i in whole[name] if i < episodes]
            assert len(indices) or (name == "test" and not shares[1])
        if episodes % 10 == 0 and min(shares) >= 0.1:
            held_out = round(sum(shares) * episodes)
            assert abs(len(part["val"]) - episodes * shares[0]) < 1 and len(part["train"]) == episodes - held_out


@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
def test_episodes_that_are_added_stay_in_their_fold(test_fraction):
    some, more = (split_folds(numbered(*[3] * n), 4, 1, test_fraction, seed=5) for n in (13, 37))
    old = set(some["train"].names) | set(some["val"].names) | set(some["test"].names)
    assert all(some[name].names == [one for one in more[name].names if one in old] for name in some)


def test_every_episode_validates_in_one_fold_and_the_test_stays_apart():
    episodes = numbered(*[3] * 11)
    folds = [split_folds(episodes, 4, fold, 0.2, seed=5) for fold in range(4)]
    tested = folds[0]["test"].names
    assert len(tested) == 2 and all(fold["test"].names == tested for fold in folds)
    validated = [name for fold in folds for name in fold["val"].names]
    assert sorted([*validated, *tested]) == sorted(episodes.names)
    for fold in folds:
        assert len(fold["val"]) in (2, 3)
        assert sorted([*fold["train"].names, *fold["val"].names, *tested]) == sorted(episodes.names)
    assert split_folds(episodes, 4, 0, 0.2, seed=6)["val"].names != folds[0]["val"].names


def test_one_recording_is_divided_into_blocks():
    folds = [split_folds(numbered(99), 4, fold, 0.2, seed=0) for fold in range(4)]
    assert [rows_of(fold["val"]) for fold in folds] == [[list(range(20 * n, 20 * n + 20))] for n in range(4)]
    assert rows_of(folds[0]["train"]) == [list(range(20, 80))]
    assert rows_of(folds[1]["train"]) == [list(range(20)), list(range(40, 80))]
    assert rows_of(folds[3]["train"]) == [list(range(60))]
    assert all(rows_of(fold["test"]) == [list(range(80, 100))] for fold in folds), "the end, which no fold has seen"
    assert folds[1]["train"].names == ["file, episode 0 (frames 0 to 19)", "file, episode 0 (frames 40 to 79)"]


def test_few_recordings_each_give_a_block_and_no_test_is_none():
    fold = split_folds(numbered(9, 19), 5, 4, 0.0, seed=0)
    assert rows_of(fold["val"]) == [[8, 9], list(range(26, 30))] and len(fold["test"]) == 0
    assert rows_of(fold["train"]) == [list(range(8)), list(range(10, 26))]


def test_a_recording_that_is_too_short_is_named():
    with pytest.raises(UserError, match=r"episode 1 has 9 frames: too few for 5 blocks of at least 2; use fewer"):
        split_folds(numbered(30, 8), 5, 0, 0.0, seed=0)
    assert len(split_folds(numbered(30, 9), 5, 0, 0.0, seed=0)["val"]) == 2
    with pytest.raises(UserError, match="5 blocks of at least 2 and a test"):
        split_folds(numbered(9), 5, 0, 0.1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "data.folds is 1: it must be at least 2"),
        ({"folds": 3, "fold": 3}, "data.fold is 3: of 3 folds"),
        ({"folds": 3, "fold": -1}, "it must be 0 to 2"),
        ({"fold": 1}, "data.fold is 1: say with data.folds"),
        ({"val_fraction": 0.0}, "the first must be above 0"),
    ],
)
def test_folds_that_divide_nothing_are_named(options, message):
    with pytest.raises(UserError, match=message):
        EpisodeDataModule(Path("nowhere"), **options)


@pytest.fixture
def recording(tmp_path):
    """One episode of 120 steps, whose observation is the frame's number, and its action too."""
    spaces = {"observation_space": {"observation": box_of(np.zeros((1, 1)))}, "action_space": box_of(np.zeros((1, 1)))}
    writer = EpisodeWriter(tmp_path / "one", spaces)
    frames = np.arange(121, dtype=np.float32)[:, None]
    writer.add(Episode({"observation": frames}, frames[:-1], np.zeros(120), False, True))
    writer.finish()
    return tmp_path / "one"


def test_nothing_leaks_from_a_held_out_block_into_training(recording):
    data = EpisodeDataModule(recording, steps=8, lanes=2, test_fraction=0.2, folds=3, fold=1)
    held = set(data.splits["val"].rows(0).tolist()) | set(data.splits["test"].rows(0).tolist())
    trained, batches = set(), data.training_segments()
    for n in range(3 * len(batches)):
        batch = batches[n]
        now, then = batch["obs"][:, :-1, 0][batch["valid"]], batch["obs"][:, 1:, 0][batch["valid"]]
        assert (then == now + 1).all() and (batch["action"][..., 0][batch["valid"]] == now).all(), "no step has a gap"
        trained |= {*now.int().tolist(), *then.int().tolist()}
    assert trained == set(range(121)) - held
    mean, _ = data.statistics["obs"]
    assert float(mean) == pytest.approx(np.mean(sorted(trained))), "nor into the normalisation"


def test_without_folds_one_recording_is_told_of_them(recording):
    with pytest.raises(UserError, match="or hold out a block of each with --data.folds"):
        _ = EpisodeDataModule(recording).splits


def test_a_fit_does_not_resume_in_another_fold(recording):
    streams = [EpisodeDataModule(recording, folds=3, fold=fold).state_dict()["stream"] for fold in (0, 1)]
    assert streams[0] != streams[1]
