"""Sequence tasks: what is asked for can be told from what came before, and nothing else gives it away."""

import math

import gymnasium as gym
import numpy as np
import pytest

from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.tasks.sequences import TASKS, Balanced, Counting, Haystack, RepeatFirst, SelectiveCopy, make_task


def drawn(task, count=400, length=None):
    rng = np.random.default_rng(0)
    return [task.draw(rng, length) for _ in range(count)]


def spelled(task, sequence):
    return [task.vocabulary[token] for token in sequence.tokens]


@pytest.mark.parametrize(("symbols", "word"), [(2, "S a a a b b b E"), (3, "S a a a b b b c c c E")])
def test_counting_spells_its_words(symbols, word):
    task = Counting(symbols, max_n=10)
    assert spelled(task, task.word(3)) == word.split()
    lengths = {len(sequence.weight) for sequence in drawn(task)}
    assert lengths == {symbols * n + 1 for n in range(1, 11)}
    assert all(sequence.weight.all() for sequence in drawn(task, 5))


@pytest.mark.parametrize("symbols", [2, 3])
def test_the_least_cross_entropy_is_that_of_the_true_probabilities(symbols):
    """After k of the a, n is uniform on k .. max_n: the next is a b with 1 / (max_n - k + 1)."""
    task, m = Counting(symbols, max_n=7), 7
    surprise = {
        n: -sum(math.log((m - k) / (m - k + 1)) for k in range(1, n)) + math.log(m - n + 1) for n in range(1, 8)
    }
    steps = sum(symbols * n + 1 for n in surprise)
    assert task.optimum() == pytest.approx(sum(surprise.values()) / steps, rel=1e-12)


def test_balance_is_told_by_parity_three_times_in_four():
    task = Balanced(max_n=10)
    counts = {"Y": [], "N": []}
    for sequence in drawn(task, 4000):
        words = spelled(task, sequence)
        n, m = words.count("a"), words.count("b")
        assert words == ["S", *"a" * n, *"b" * m, "E", "Y" if n == m else "N"]
        assert sequence.weight.sum() == sequence.weight[-1] == 1 and abs(n - m) <= 2
        counts[words[-1]].append(n + m)
    balanced, other = (np.array(counts[answer]) for answer in "YN")
    assert abs(len(balanced) - 2000) < 4 * math.sqrt(1000)
    by_parity = (len(balanced) + (other % 2 == 1).sum()) / 4000
    assert by_parity == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("first", [False, True])
def test_the_haystack_tells_its_value_once(first):
    task, places = Haystack(first=first), []
    for sequence in drawn(task):
        words = spelled(task, sequence)
        assert 24 <= len(sequence.weight) <= 32
        place = words.index("KEY")
        assert words[place + 2] == "SEP" and words.count("KEY") == words.count("?") == 1
        assert words[-2] == "?" and words[-1] == words[place + 1]
        assert sequence.weight.sum() == sequence.weight[-1] == 1
        places.append(place / (len(words) - 5))
    assert (max(places) == 0) if first else (min(places) == 0 and max(places) > 0.9 and 0.4 < np.mean(places) < 0.6)
    answers = np.array([sequence.tokens[-1] for sequence in drawn(task, 4000)])
    assert (np.abs(np.bincount(answers) - 1000) < 4 * math.sqrt(750)).all()


def test_selective_copy_asks_for_the_items_in_order():
    task = SelectiveCopy(items=3)
    for sequence in drawn(task):
        words = spelled(task, sequence)
        go = words.index("GO")
        assert [word for word in words[:go] if word != "_"] == words[go + 1 :] and len(words) - go == 4
        assert sequence.weight.tolist() == [0] * go + [1] * 3


def test_repeat_first_asks_for_the_first():
    task = RepeatFirst()
    assert all(sequence.weight.sum() == sequence.weight[-1] == 1 for sequence in drawn(task, 50, length=60))
    for sequence in drawn(task) + drawn(task, 200, length=3) + drawn(task, 50, length=2):
        words = spelled(task, sequence)
        asked = [t for t, word in enumerate(words) if word == "?"]
        assert asked and asked == np.flatnonzero(sequence.weight).tolist()
        assert all(words[t + 1] == words[0] for t in asked) and words[0] != "?" and words[-2] == "?"


def test_of_a_given_length_no_letter_alone_tells_the_balance():
    """Of one n, whoever knows m alone is right every time: a model did, and seemed to count."""
    task, answers = Balanced(), {}
    for sequence in drawn(task, 4000, length=200):
        words = spelled(task, sequence)
        answers.setdefault(words.count("b"), []).append(words[-1] == "Y")
        assert 0.7 * 200 <= len(sequence.weight) <= 204
    by_m = sum(max(sum(known), len(known) - sum(known)) for known in answers.values()) / 4000
    assert by_m < 0.6


@pytest.mark.parametrize("task", [Haystack(), SelectiveCopy(), RepeatFirst(), Counting()])
def test_sequences_are_as_long_as_asked(task):
    assert all(abs(len(sequence.weight) - 200) <= 4 for sequence in drawn(task, 20, length=200))


@pytest.mark.parametrize("env_id", TASKS)
def test_a_recording_holds_whole_sequences(env_id, tmp_path):
    collect(CollectOptions(env_id=env_id, steps=800, num_envs=4), tmp_path)
    task, whole = make_task(env_id), 0
    for _, episode in open_dataset(tmp_path).episodes():
        tokens = episode.observations["observation"].astype(int)
        whole += episode.terminated
        if episode.terminated:
            assert tokens.shape == (len(episode) + 1,) and set(np.unique(episode.rewards)) <= {0.0, 1.0}
            assert episode.rewards[-1] == 1 and tokens.max() < len(task.vocabulary)
    assert whole > 15


def test_gymnasium_finds_nothing_wrong():
    from gymnasium.utils.env_checker import check_env

    check_env(gym.make("worldmodel/Haystack-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("env_id", "options", "words"),
    [
        ("Haystack", {"value": 3}, "Haystack-v0 option 'value': did you mean 'values'"),
        ("Haystack", {"values": 1}, "values is 1: it must be a whole number, at least 2"),
        ("Haystack", {"min_length": 40}, "min_length 40 is above its max_length 32"),
        ("Counting", {"symbols": 4}, "symbols is 4: it must be a whole number, from 2 to 3"),
        ("Counting", {"max_n": "ten"}, "max_n is 'ten'"),
        ("SelectiveCopy", {"items": 0}, "items is 0: it must be a whole number, at least 1"),
    ],
)
def test_wrong_options_are_told(env_id, options, words):
    with pytest.raises(UserError, match=words):
        make_task(f"worldmodel/{env_id}-v0", **options)
