"""Free runs with models whose errors are known."""

import csv

import numpy as np
import pytest
import torch
from evaluation.test_horizon import CopyLast, Exact, toy_episodes
from memory import box, episodes_of

from worldmodel.data.episodes import Episodes, Layout
from worldmodel.errors import UserError
from worldmodel.evaluation import rollouts
from worldmodel.evaluation.figures import free_run_figure
from worldmodel.evaluation.free_run import free_run, long_enough


def ramps(*lengths):
    """Two entries that rise by one and by two a step: repeating them k steps is off by k and by 2 k."""
    obs = np.concatenate([np.arange(length + 1)[:, None] * [1.0, 2.0] for length in lengths])
    return episodes_of(obs, np.zeros((len(obs), 1)), lengths)


def test_an_exact_model_has_no_error_to_the_end_of_each_episode():
    run = free_run(Exact(), toy_episodes(300, 41, 120), 10, seen=5, examples=2)
    assert run.steps.tolist() == [296, 37, 116] and not run.mse.any() and not run.nmse.any()
    assert run.metrics() == {"free_run/nmse": 0, "free_run/rmse": 0}
    assert [len(example.prediction) for example in run.examples] == [296, 37]
    assert [len(example.truth) for example in run.examples] == [297, 38]


def test_the_errors_by_hand():
    """Over all predicted frames; a long episode counts as much as it is longer."""
    episodes = ramps(10, 3)
    run = free_run(CopyLast(), episodes, 4, seen=2)
    long, short = np.arange(1, 10) ** 2, np.arange(1, 3) ** 2
    assert run.steps.tolist() == [9, 2] and run.entries == ["observation[0]", "observation[1]"]
    np.testing.assert_allclose(run.mse, [[long.mean(), 4 * long.mean()], [short.mean(), 4 * short.mean()]])
    rmse = np.sqrt(np.mean([*long, *short]))
    np.testing.assert_allclose(run.rmse_of_entries, [rmse, 2 * rmse])
    np.testing.assert_allclose(run.rmse, 1.5 * np.sqrt([long.mean(), short.mean()]))
    var = episodes.obs(np.arange(len(episodes.frames))).var(axis=0)[0]
    expected = {"free_run/rmse": 1.5 * rmse, "free_run/nmse": np.mean([*long, *short]) / var}
    assert run.metrics() == pytest.approx(expected, rel=1e-6)
    reference = ramps(100)
    ratio = run.metrics()["free_run/nmse"] / free_run(CopyLast(), episodes, 4, 2, reference).metrics()["free_run/nmse"]
    assert ratio == pytest.approx(reference.obs(np.arange(101)).var(axis=0)[0] / var, rel=1e-6)


@pytest.mark.parametrize("seen", [1, 6, 7, 20])
def test_the_model_sees_the_first_frames_and_no_other(seen):
    model = Exact()
    free_run(model, toy_episodes(60, 40), 7, seen)
    assert model.started_with.flatten().tolist() == [seen - 1] * 2, "and the last of them is the start"


def test_chunks_and_groups_change_nothing(monkeypatch):
    episodes = toy_episodes(50, 9, 30, 21)
    whole = free_run(CopyLast(), episodes, 1000, seen=3, examples=4)
    monkeypatch.setattr(rollouts, "BLOCK", 30)
    parts = free_run(CopyLast(), episodes, 7, seen=3, examples=4)
    np.testing.assert_allclose(parts.mse, whole.mse)
    for one, other in zip(parts.examples, whole.examples, strict=True):
        np.testing.assert_array_equal(one.prediction, other.prediction)


def test_a_state_that_explodes_is_infinite_in_its_episode_alone():
    class Explodes(Exact):
        def step(self, z, a):
            return torch.where(z[:, :1] > 0, z, torch.nan)

    obs = np.ones((20, 2), np.float32)
    obs[10:] = -1
    run = free_run(Explodes(), episodes_of(obs, np.zeros((20, 1)), (9, 9)), 4, seen=2)
    assert run.mse[0].tolist() == [0, 0] and np.isinf(run.mse[1]).all()
    assert run.metrics()["free_run/rmse"] == np.inf


def test_an_image_is_one_entry():
    space = {"camera": {**box(8, 8, 1, dtype="uint8"), "low": 0, "high": 255}, "place": box(1)}
    images = np.arange(0, 60, 10, dtype=np.uint8)[:, None].repeat(64, axis=1)
    frames = np.zeros((6, 4), np.float32)
    frames[:, 0] = np.arange(6)
    episodes = Episodes(Layout(space, box(1)), frames, images, np.array([0]), np.array([6]), ["one"])
    run = free_run(CopyLast(), episodes, 2, seen=4)
    assert run.entries == ["place[0]", "camera"]
    np.testing.assert_allclose(run.mse, [[2.5, 250.0]])


def test_rows_of_the_files(tmp_path):
    run = free_run(CopyLast(), ramps(10, 3), 4, seen=2)
    run.append_csv(tmp_path / "rollout.csv")
    run.append_csv(tmp_path / "rollout.csv")
    rows = list(csv.DictReader((tmp_path / "rollout.csv").open()))
    names = ["free_run/nmse", "free_run/rmse", "free_run/rmse observation[0]", "free_run/rmse observation[1]"]
    assert [row["metric"] for row in rows] == 2 * names and {row["horizon"] for row in rows} == {"9"}
    assert float(rows[3]["value"]) == run.rmse_of_entries[1]
    run.write_csv(tmp_path / "free_run.csv")
    rows = list(csv.DictReader((tmp_path / "free_run.csv").open()))
    assert [(row["episode"], row["steps"], row["entry"]) for row in rows[1:3]] == [
        ("file, episode 0", "9", "observation[1]"),
        ("file, episode 1", "2", "observation[0]"),
    ]
    assert float(rows[2]["rmse"]) == pytest.approx(np.sqrt(2.5)) and float(rows[2]["nmse"]) == run.nmse[1]


def test_what_is_too_short_is_left_out_and_nothing_is_an_error():
    episodes = ramps(5, 9, 4)
    assert long_enough(episodes, 5, "--x").num_frames.tolist() == [6, 10]
    assert long_enough(episodes, 9, "--x").num_frames.tolist() == [10]
    with pytest.raises(UserError, match="--x 10: the longest episode has 10 frames"):
        long_enough(episodes, 10, "--x")


def test_the_picture_has_a_panel_for_each_entry_of_each_episode():
    run = free_run(CopyLast(), ramps(10, 6), 4, seen=2, examples=2)
    figure = free_run_figure(run, "ramps")
    panels = figure.axes
    assert len(panels) == 4 and "RMSE 5.627" in panels[0].get_title()
    truth, model, error = panels[1].lines
    assert truth.get_xdata().tolist() == list(range(2, 11)) and truth.get_ydata().tolist() == list(range(4, 21, 2))
    np.testing.assert_array_equal(error.get_ydata(), truth.get_ydata() - model.get_ydata())
