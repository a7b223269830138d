"""Planted faults: each is found by the check made for it, at the right place, and by no other."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.check.recordings import (
    cartpole,
    cheetah,
    every_second,
    images,
    pendulum,
    shifted,
    source_of,
    with_episodes,
)
from worldmodel.data.check import check_episodes

# two simulators with random actions, one with smooth ones; the others in full
RECORDINGS = pytest.mark.parametrize(
    ("recording", "policy"),
    [
        *((cartpole, "uniform"), (cheetah, "uniform"), (pendulum, "smooth")),
        pytest.param(pendulum, "uniform", marks=pytest.mark.full),
        *(pytest.param(recording, "smooth", marks=pytest.mark.full) for recording in (cartpole, cheetah)),
    ],
)


def halves(episodes):
    return {"train": np.arange(0, episodes - 5), "val": np.arange(episodes - 5, episodes)}


def only(source, splits=None):
    """The one finding; its remedy is told."""
    found = check_episodes(source, splits)
    assert len(found) == 1, found
    assert found[0].remedy
    return found[0]


def change_at(source, episode, change):
    """The source with one episode changed; `change` gets copies of (observations, actions, rewards)."""
    key = next(iter(source.observation_space))

    def apply(i, e):
        if i not in np.atleast_1d(episode):
            return e
        parts = e.observations[key].copy(), e.actions.copy(), e.rewards.copy()
        change(*parts)
        return replace(e, observations={key: parts[0]}, actions=parts[1], rewards=parts[2])

    return with_episodes(source, apply)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *((0, np.nan), (1, np.inf), (2, np.nan)),
        *(pytest.param(*rest, marks=pytest.mark.full) for rest in ((0, np.inf), (1, np.nan), (2, np.inf))),
    ],
)
def test_a_value_that_is_not_finite(part, value):
    def spoil(*parts):
        parts[part][17] = value

    found = only(change_at(pendulum("uniform"), [3, 5], spoil))
    assert (found.level, found.check, found.count) == ("error", "not finite", 2)
    assert found.where == "data.h5, episode 3, step 17"


def test_constant_entries():
    def freeze(observations, actions, rewards):
        observations[:, 4] = 0.25
        actions[:, 2] = 0.5

    found = check_episodes(change_at(cheetah("uniform"), range(20), freeze))
    assert [(f.level, f.check, f.count) for f in found] == [("warning", "constant", 1)] * 2
    whats = ["observation 'observation': 1 entries never change: 4", "actions: 1 entries never change: 2"]
    assert [f.what for f in found] == whats


def test_an_action_that_is_never_taken():
    source = cartpole("uniform")
    wider = replace(source, action_space={"type": "Discrete", "n": 4, "start": 0})
    found = only(wider)
    assert (found.check, found.count) == ("action never taken", 2)
    assert "2, 3" in found.what


def test_a_continuous_action_out_of_bounds():
    def push(observations, actions, rewards):
        actions[40] = 2.5

    found = only(change_at(pendulum("uniform"), 6, push))
    assert (found.level, found.check) == ("error", "out of bounds")
    assert found.where == "data.h5, episode 6, step 40"
    assert "2.5" in found.what


def test_a_discrete_action_out_of_range():
    def push(observations, actions, rewards):
        actions[5] = 2

    found = only(change_at(cartpole("uniform"), 9, push))
    assert (found.level, found.check, found.where) == ("error", "out of bounds", "data.h5, episode 9, step 5")


def test_an_observation_out_of_bounds():
    def push(observations, actions, rewards):
        observations[30, 2] = 9.0

    found = only(change_at(pendulum("uniform"), 2, push))
    assert (found.level, found.check, found.where) == ("warning", "out of bounds", "data.h5, episode 2, step 30")


def test_black_frames():
    def darken(observations, actions, rewards):
        observations[:2] = 1

    found = only(change_at(images("uniform"), [4, 8], darken))
    assert (found.check, found.where, found.count) == ("black frames", "data.h5, episode 4, step 0", 4)


def test_a_camera_that_stands_still():
    def freeze(observations, actions, rewards):
        observations[:] = 77

    found = check_episodes(change_at(images("uniform"), range(15), freeze))
    assert [f.check for f in found] == ["constant"]


@RECORDINGS
def test_actions_one_step_late(recording, policy):
    found = only(shifted(recording(policy), 1))
    assert found.check == "actions too late"


@RECORDINGS
def test_actions_one_step_early(recording, policy):
    found = only(shifted(recording(policy), -1))
    assert (found.level, found.check) == ("error", "actions too early")


def test_a_last_observation_that_repeats_the_one_before():
    def repeat(observations, actions, rewards):
        observations[-1] = observations[-2]

    found = only(change_at(cartpole("uniform"), range(0, 100), repeat))
    assert (found.check, found.count) == ("no final observation", 100)
    assert found.where.startswith("data.h5, episode 0, step ")


def test_a_last_observation_of_zeros():
    def blank(observations, actions, rewards):
        observations[-1] = 0

    found = only(change_at(cartpole("uniform"), range(150), blank))
    assert (found.level, found.check, found.count) == ("error", "no final observation", 150)
    assert "zeros" in found.what


def test_the_reset_recorded_as_the_last_observation():
    episodes = [episode for _, episode in cartpole("uniform").episodes()]
    changed = []
    for episode, following in zip(episodes[:-1], episodes[1:], strict=True):
        observations = episode.observations["observation"].copy()
        observations[-1] = following.observations["observation"][0]
        changed.append(replace(episode, observations={"observation": observations}))
    found = only(source_of(changed + episodes[-1:], cartpole("uniform").action_space))
    assert (found.level, found.check, found.count) == ("error", "no final observation", len(episodes) - 1)
    assert found.where == f"data.h5, episode 0, step {len(episodes[0])}"
    assert "reset" in found.what


def test_a_time_limit_flagged_as_terminal():
    source = with_episodes(pendulum("uniform"), lambda i, e: replace(e, terminated=True, truncated=False))
    found = only(source)
    assert (found.level, found.check, found.count) == ("warning", "time limit flagged terminated", 20)
    assert "200 steps" in found.what


def test_episodes_that_end_without_a_flag():
    source = with_episodes(cartpole("uniform"), lambda i, e: replace(e, terminated=e.terminated and i != 7))
    found = only(source)
    assert (found.check, found.count) == ("no end", 1)
    assert found.where.startswith("data.h5, episode 7, step ")


def test_a_lost_flag_of_terminal_states():
    source = with_episodes(cartpole("uniform"), lambda i, e: replace(e, terminated=False, truncated=True))
    assert only(source).check == "no episode terminated"


def test_a_duplicated_episode():
    episodes = [episode for _, episode in pendulum("uniform").episodes()]
    found = only(source_of([*episodes, episodes[4]]))
    assert (found.check, found.where, found.count) == ("duplicated episodes", "data.h5, episode 20, step 0", 1)
    assert "data.h5, episode 4 from step 0" in found.what


def part(episode, begin, end):
    observations = {key: value[begin : end + 1] for key, value in episode.observations.items()}
    return replace(
        episode, observations=observations, actions=episode.actions[begin:end], rewards=episode.rewards[begin:end]
    )


def test_overlapping_clips():
    episodes = [episode for _, episode in pendulum("uniform").episodes()]
    clips = [part(episodes[3], 0, 100), part(episodes[3], 90, 190)]
    found = only(source_of(clips + episodes[5:]))
    assert (found.check, found.where, found.count) == ("overlapping episodes", "data.h5, episode 1, step 0", 1)
    assert "10 steps" in found.what and "data.h5, episode 0 from step 90" in found.what


@pytest.mark.parametrize("recording", [pendulum, images])
def test_training_and_validation_share_a_copy(recording):
    episodes = [episode for _, episode in recording("uniform").episodes()]
    copied = replace(recording("uniform"), episodes=source_of([*episodes, episodes[2]]).episodes)
    found = check_episodes(copied, halves)
    assert [(f.level, f.check, f.where) for f in found] == [
        ("error", "splits share frames", f"data.h5, episode {len(episodes)}, step 0"),
        ("warning", "duplicated episodes", f"data.h5, episode {len(episodes)}, step 0"),
    ]
    assert "train" in found[0].what and "val" in found[0].what


def test_training_and_validation_share_a_clip():
    episodes = [episode for _, episode in pendulum("smooth").episodes()]
    found = check_episodes(source_of([*episodes[:-1], part(episodes[0], 50, 120)]), halves)
    assert [f.check for f in found] == ["splits share frames", "overlapping episodes"]
    assert "70 steps" in found[0].what and "episode 0 from step 50" in found[0].what


def test_overlaps_are_found_with_little_memory(monkeypatch):
    monkeypatch.setattr("worldmodel.data.check.duplicates.MOST_KEPT", 500)  # of some 3,800 runs
    episodes = [episode for _, episode in pendulum("smooth").episodes()]
    found = only(source_of([*episodes[:-1], part(episodes[0], 50, 150)]))
    assert (found.check, found.count) == ("overlapping episodes", 1)


def test_declared_rates_that_differ():
    source = with_episodes(pendulum("uniform"), lambda i, e: replace(e, rate=10.0 if i == 13 else 20.0))
    found = only(source)
    assert (found.check, found.where, found.count) == ("mixed sampling rates", "data.h5, episode 13, step 0", 1)


@pytest.mark.parametrize(
    ("recording", "policy"),
    [
        (pendulum, "uniform"),
        (cheetah, "uniform"),
        (pendulum, "smooth"),
        pytest.param(cheetah, "smooth", marks=pytest.mark.full),
    ],
)
def test_rates_that_differ_though_none_is_declared(recording, policy):
    source = with_episodes(recording(policy), lambda i, e: every_second(e) if i % 2 else e)
    found = check_episodes(source)
    rates = [f for f in found if f.check == "mixed sampling rates"]
    assert [(f.where, f.count) for f in rates] == [("data.h5, episode 1, step 0", 10)]
    assert len(found) == 1, found


def test_errors_come_first():
    def spoil(observations, actions, rewards):
        rewards[0] = np.nan

    source = with_episodes(change_at(pendulum("uniform"), 1, spoil), lambda i, e: replace(e, truncated=i != 0))
    assert [f.level for f in check_episodes(source)] == ["error", "warning"]
