"""The lane schedule: every transition once, episodes whole and in order, a function of (seed, n)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.lanes import LaneSchedule

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)  # transitions


def schedule_of(transitions, lanes, steps, seed=0, whole=False):
    return LaneSchedule(np.array(transitions) + 1, lanes, steps, seed, whole=whole)


@pytest.mark.fault(10)
@settings(deadline=None, max_examples=150)
@given(
    transitions=lengths,
    lanes=st.integers(1, 6),
    steps=st.integers(1, 20),
    epoch=st.integers(0, 3),
    whole=st.booleans(),
)
def test_every_transition_exactly_once_an_epoch(transitions, lanes, steps, epoch, whole):
    schedule = schedule_of(transitions, lanes, steps, whole=whole)
    seen = Counter()
    for n in range(epoch * schedule.batches_per_epoch, (epoch + 1) * schedule.batches_per_epoch):
        frames = schedule.batch(n)
        assert frames.episode.shape == (lanes, steps + 1)
        for lane, t in np.argwhere(frames.valid):
            seen[int(frames.episode[lane, t]), int(frames.step[lane, t])] += 1
    assert seen == Counter({(e, t): 1 for e, length in enumerate(transitions) for t in range(length)})


@settings(deadline=None, max_examples=50)
@given(transitions=lengths, lanes=st.integers(1, 4), steps=st.integers(1, 20))
def test_a_lane_is_a_continuous_stream(transitions, lanes, steps):
    schedule = schedule_of(transitions, lanes, steps)
    batches = [schedule.batch(n) for n in range(schedule.batches_per_epoch)]
    for before, after in zip(batches, batches[1:], strict=False):
        assert (before.episode[:, -1] == after.episode[:, 0]).all()
        assert (before.step[:, -1] == after.step[:, 0]).all()
    episode = np.concatenate([b.episode[:, :-1] for b in batches], axis=1)
    step = np.concatenate([b.step[:, :-1] for b in batches], axis=1)
    is_first = np.concatenate([b.is_first for b in batches], axis=1)
    changes = episode[:, 1:] != episode[:, :-1]
    assert (is_first[:, 0]).all(), "an epoch starts every lane with an episode's first frame"
    assert (is_first[:, 1:][changes]).all()
    inside = ~changes & (episode[:, 1:] >= 0)
    assert (step[:, 1:][inside] == step[:, :-1][inside] + 1).all()
    assert not is_first[:, 1:][inside].any()


@settings(deadline=None, max_examples=50)
@given(transitions=lengths, lanes=st.integers(1, 4), steps=st.integers(1, 20))
def test_whole_episodes_begin_where_segments_do(transitions, lanes, steps):
    schedule = schedule_of(transitions, lanes, steps, whole=True)
    for n in range(schedule.batches_per_epoch):
        frames = schedule.batch(n)
        inside = frames.episode[:, :-1] >= 0
        place = np.broadcast_to(np.arange(steps), inside.shape)
        assert (frames.step[:, :-1][inside] % steps == place[inside]).all()
        assert frames.is_first[~inside].all() and not frames.valid[~inside].any()
        for lane in frames.episode[:, :-1]:
            assert len(set(lane[lane >= 0])) <= 1, "one episode a segment"


@settings(deadline=None, max_examples=50)
@given(transitions=lengths, lanes=st.integers(1, 4), steps=st.integers(2, 8), times=st.integers(1, 3))
def test_crops_begin_where_segments_do_and_lie_in_one_episode(transitions, lanes, steps, times):
    crop = steps * times
    schedule = LaneSchedule(np.array(transitions) + 1, lanes, steps, crop=crop)
    batches = [schedule.batch(n) for n in range(schedule.batches_per_epoch)]
    assert len(batches) % times == 0, "all lanes are full"
    for begin in range(0, len(batches), times):
        piece = batches[begin : begin + times]
        episode, step, is_first = (
            np.concatenate([getattr(batch, name)[:, :steps] for batch in piece], axis=1)
            for name in ("episode", "step", "is_first")
        )
        inside = episode >= 0
        assert inside[:, 0].all() and is_first[:, 0].all()
        assert (inside.sum(axis=1) == np.minimum(np.array(transitions)[episode[:, 0]] + 1, crop)).all()
        assert (episode[inside] == np.broadcast_to(episode[:, :1], episode.shape)[inside]).all()
        assert (step[inside] == (step[:, :1] + np.arange(crop))[inside]).all()
        assert (is_first[:, 1:] == ~inside[:, 1:]).all()
        valid = np.concatenate([batch.valid for batch in piece], axis=1)
        assert (valid[:, :-1] == inside[:, 1:]).all() and not valid[:, -1].any()


def test_crops_reach_every_transition_of_one_recording_about_equally_often():
    schedule = LaneSchedule(np.array([1000]), 4, 16, crop=64)
    assert schedule.padding == pytest.approx(1 / 64)
    seen = np.zeros(1000)
    for n in range(200 * schedule.batches_per_epoch):
        frames = schedule.batch(n)
        np.add.at(seen, frames.step[:, :-1][frames.valid], 1)
    assert len(np.unique(seen)) > 20, "their places change from epoch to epoch"
    assert seen[64:-64].min() > 0.8 * seen.mean() and seen[64:-64].max() < 1.3 * seen.mean()
    assert seen[:5].any() and seen[-6:-1].any() and seen[-1] == 0


@pytest.mark.fault(10)
@pytest.mark.parametrize("special", [[1], [7], [8], [9], [1, 7, 8, 9, 16, 17]])
def test_lengths_around_the_segment(special):
    schedule = schedule_of(special, 2, 8)
    total = sum(int(schedule.batch(n).valid.sum()) for n in range(schedule.batches_per_epoch))
    assert total == sum(special)


def test_a_function_of_seed_and_number():
    transitions = list(range(3, 30))
    one, other = schedule_of(transitions, 4, 8), schedule_of(transitions, 4, 8)
    for n in (40, 3, 0, 17):  # any order
        assert (one.batch(n).episode == other.batch(n).episode).all()
    per_epoch = one.batches_per_epoch
    first_epoch, second_epoch = one.batch(0).episode, one.batch(per_epoch).episode
    assert (first_epoch != second_epoch).any(), "epochs are shuffled differently"
    assert (one.batch(0).episode != schedule_of(transitions, 4, 8, seed=1).batch(0).episode).any()
    assert one.batch(per_epoch - 1).valid.any(), "no batch is empty"


def test_the_longest_episodes_come_first():
    schedule = schedule_of([1, 1, 1, 5], lanes=2, steps=1)  # 6 frames beside 2 + 2 + 2: shortest first, it were 2 + 6
    assert schedule.batches_per_epoch == 5


def test_lanes_are_even():
    schedule = schedule_of([200] * 64, 16, 32)
    assert schedule.padding < 0.05
    # the longest first: one lane of 90 frames, the other of nine times 10
    assert schedule_of([9] * 9 + [89], 2, 10).batches_per_epoch == 9
