"""Judging memories that are known: an exact one, and ones that fail at a known place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodel.tasks import recall as recall_module
from worldmodel.tasks.recall import accepts, counts_to, recall
from worldmodel.tasks.sequences import Balanced, Counting, Haystack, RepeatFirst, SelectiveCopy


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Sequences and words in several pieces, at lengths that cost little."""
    monkeypatch.setattr(recall_module, "PIECE", 32)
    monkeypatch.setattr(recall_module, "WORDS", 32)


class Counter:
    """Counts a word's symbols in its state (one entry a symbol), exactly, up to `limit`."""

    device = torch.device("cpu")

    def __init__(self, symbols=2, limit=10**9):
        self.symbols, self.limit = symbols, limit

    def closed_loop(self, obs, action, is_first, h=None):
        """What is predicted: a before any b; then the same symbol until there are as many as of a."""
        h = torch.zeros(len(obs), self.symbols) if h is None else h
        states, predicted = [], []
        for t in range(obs.shape[1]):
            h = h.masked_fill(is_first[:, t, None], 0)
            h = torch.minimum(h + obs[:, t, 1:-1], torch.tensor(float(self.limit)))
            now, n = obs[:, t].argmax(-1), h[:, 0]
            own = torch.where(
                (now > 0) & (now <= self.symbols), h.gather(1, (now - 1).clamp(0, self.symbols - 1)[:, None])[:, 0], 0.0
            )
            following = torch.where(now == 0, 1, torch.where((now > 1) & (own >= n), now + 1, now))
            predicted.append(F.one_hot(following.clamp(max=self.symbols + 1), self.symbols + 2).float())
            states.append(h)
        return torch.stack(predicted, 1), torch.stack(states, 1), h


@pytest.mark.parametrize("symbols", [2, 3])
def test_an_exact_counter_counts_to_the_limit(symbols):
    assert counts_to(Counter(symbols), Counting(symbols), 150) == 150


@pytest.mark.parametrize("symbols", [2, 3])
@pytest.mark.parametrize("limit", [1, 5, 32, 33, 64, 97])
def test_a_counter_that_saturates_counts_to_there(symbols, limit):
    """Beyond `limit` it takes n for `limit`, and expects the end too early."""
    assert counts_to(Counter(symbols, limit), Counting(symbols), 120) == limit


def test_accepting_says_which_words():
    class Skips(Counter):
        def closed_loop(self, obs, action, is_first, h=None):
            predicted, states, h = super().closed_loop(obs, action, is_first, h)
            wrong = (states[..., 0] == 7) & (states[..., 1] == 7)  # at the end of the seventh word
            predicted[wrong] = F.one_hot(torch.tensor(2), 4).float()
            return predicted, states, h

    sizes = np.arange(3, 12)
    assert accepts(Skips(), Counting(), sizes).tolist() == [n != 7 for n in sizes]
    assert counts_to(Skips(), Counting(), 50) == 6


class Remembers:
    """Keeps the token that stood at a place, and always predicts it."""

    device = torch.device("cpu")

    def __init__(self, find, forgets=10**9):
        self.find, self.forgets = find, forgets

    def closed_loop(self, obs, action, is_first, h=None):
        h = torch.zeros(len(obs), 2 + obs.shape[-1]) if h is None else h
        states, predicted = [], []
        for t in range(obs.shape[1]):
            h = h.masked_fill(is_first[:, t, None], 0)
            age, before, kept = h[:, 0], h[:, 1], h[:, 2:]
            now = obs[:, t].argmax(-1)
            take = self.find(age, before, now)
            kept = torch.where(take[:, None], obs[:, t], kept)
            kept = torch.where((age > self.forgets)[:, None], F.one_hot(torch.tensor(0), obs.shape[-1]).float(), kept)
            h = torch.cat([(age + 1)[:, None], now[:, None], kept], 1)
            predicted.append(kept)
            states.append(h)
        return torch.stack(predicted, 1), torch.stack(states, 1), h


@pytest.mark.parametrize(
    ("task", "find"),
    [
        (Haystack(), lambda age, before, now: before == 4),  # after KEY
        (Haystack(first=True), lambda age, before, now: before == 4),
        (RepeatFirst(), lambda age, before, now: age == 0),
    ],
)
def test_a_memory_that_holds_is_always_right(task, find):
    done = recall(Remembers(find), task, [32, 64, 200], sequences=50, seed=0, limit=10)
    assert done.accuracy == [1, 1, 1] and done.counts_to is None and done.chance == 0.25


def test_a_memory_that_forgets_falls_to_chance_there():
    model = Remembers(lambda age, before, now: before == 4, forgets=100)
    done = recall(model, Haystack(first=True), [50, 99, 400], sequences=400, seed=0, limit=10)
    assert done.accuracy[:2] == [1, 1] and done.accuracy[2] == pytest.approx(0.25, abs=0.09)


def test_nothing_but_what_is_asked_for_counts():
    """Selective copy's last four steps, balance's last."""
    always = Remembers(lambda age, before, now: now == 3)
    copied = recall(always, SelectiveCopy(), [40], sequences=300, seed=0, limit=10)
    assert 0.2 < copied.accuracy[0] < 0.6
    echoes = Remembers(lambda age, before, now: now >= 0)  # right on most of the a and b, never on the answer
    answered = recall(echoes, Balanced(), [40], sequences=300, seed=0, limit=10)
    assert answered.accuracy[0] == 0 and answered.chance == 0.5
    among_the_a = recall(Counter(2), Counting(max_n=10), [40], sequences=300, seed=0, limit=10)
    assert among_the_a.accuracy == [1], "what nobody can tell is not asked"


def test_the_same_sequences_for_every_model():
    one, other = (recall(Remembers(lambda a, b, n: a == 3), Haystack(), [64], 100, 5, 1) for _ in range(2))
    assert one == other
