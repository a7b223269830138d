"""Recordings at different sampling rates in one dataset, declared or evident from the dynamics."""

import math

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.check.fragments import Fragments
from worldmodel.data.episode import Source
from worldmodel.regression import Moments, Scale, outer, products

SAME = 0.01  # relative difference below which two rates are the same
WIDE, SQUARED = 24, 12  # entries of an observation used, and of these in products
ACTIONS = 8  # entries of an action used
FEWEST = 6  # episodes that can be judged, below which nothing is reported
MOVES = 20  # steps that an episode must have to be judged
FIT, LEAST_FIT = 0.7, 0.4  # share of an entry's change that the model explains up to scale: in most episodes, in one
RATIO = 1.5  # least ratio between the scales of two groups
APART = 5.0  # least distance of the groups' means, in standard deviations within the groups
AT_ONCE = 4096  # transitions
GROUP = 0.1  # least share of the episodes in the smaller group


class Rates:
    """The check of sampling rates: of the declared ones, or where there are none of the dynamics."""

    def __init__(self, source: Source) -> None:
        self.first: dict[float, str] = {}  # rate -> name of the first episode
        self.counts: dict[float, int] = {}

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        known = np.flatnonzero(~np.isnan(block.rates))
        values, first, counts = np.unique(block.rates[known], return_index=True, return_counts=True)
        for i in np.argsort(first):
            value = float(values[i])
            rate = next((seen for seen in self.first if math.isclose(seen, value, rel_tol=SAME)), value)
            self.first.setdefault(rate, block.names[known[first[i]]])
            self.counts[rate] = self.counts.get(rate, 0) + int(counts[i])

    def findings(self, recording: Recording) -> list[Finding]:
        """At most one finding."""
        if not self.first:
            return _undeclared(recording)
        if len(self.first) < 2:
            return []
        usual = max(self.counts, key=lambda rate: self.counts[rate])
        others = sorted(rate for rate in self.first if rate != usual)
        first = min((self.first[rate] for rate in others), key=list(self.first.values()).index)
        listed = ", ".join(f"{self.counts[rate]} at {rate:g}" for rate in sorted(self.first)[:6])
        count = sum(self.counts[rate] for rate in others)
        return [_mixed(f"{first}, step 0", f"episodes at different rates (steps per second): {listed}", count)]


def _undeclared(recording: Recording) -> list[Finding]:
    """At most one finding: in a group of episodes, observations change `RATIO` times faster than in the others."""
    scales = _episode_scales(recording.fragments)
    split = two_groups(np.log(list(scales.values()))) if len(scales) >= FEWEST else None
    if split is None:
        return []
    ratio, upper = split
    upper_is_smaller = 2 * upper.sum() <= len(upper)
    episodes = np.asarray(list(scales))[upper if upper_is_smaller else ~upper]
    what = (
        f"in {len(episodes)} of {len(scales)} episodes that could be judged, observations change {ratio:.2g} times"
        f" {'faster' if upper_is_smaller else 'slower'} per step than in the others, from the same observations and"
        " actions: they seem to be sampled at another rate"
    )
    return [_mixed(f"{recording.names[min(episodes)]}, step 0", what, len(episodes))]


def _mixed(where: str, what: str, count: int) -> Finding:
    remedy = "resample to one rate, or train on each separately: one model learns one step length"
    return Finding("warning", "mixed sampling rates", where, what, remedy, count)


def two_groups(logs: np.ndarray) -> tuple[float, np.ndarray] | None:
    """(ratio, which are in the upper group) if the values form two narrow groups far apart; else None."""
    order = np.sort(logs) - logs.mean()
    cuts = (order[1:] + order[:-1]) / 2
    counts = np.arange(1, len(logs))
    sums, squares = np.cumsum(order), np.cumsum(order**2)
    below = squares[:-1] - sums[:-1] ** 2 / counts
    spreads = below + squares[-1] - squares[:-1] - (sums[-1] - sums[:-1]) ** 2 / counts[::-1]
    upper = logs - logs.mean() > cuts[int(np.argmin(spreads))]
    fewest = max(3, GROUP * len(logs))
    if min(upper.sum(), (~upper).sum()) < fewest:
        return None
    gap = logs[upper].mean() - logs[~upper].mean()
    spread = np.sqrt(max(spreads.min(), 0.0) / len(logs))
    if gap < math.log(RATIO) or gap < APART * spread:
        return None
    return math.exp(gap), upper


def _episode_scales(fragments: Fragments) -> dict[int, float]:
    """Episode -> its change per step over the change that a model of all episodes predicts, where that fits well."""
    fragments = fragments.take(np.flatnonzero(fragments.lengths >= 2))
    if len(fragments) < 2:
        return {}
    see, act = Scale(fragments.observations, WIDE), Scale(fragments.actions, ACTIONS)
    if not len(see.columns):
        return {}
    of, frames, steps = fragments.windows(1)
    parts = np.array_split(np.arange(len(of)), -(-len(of) // AT_ONCE))

    def inputs(part: np.ndarray) -> np.ndarray:
        now, after = (fragments.observations[frames[part] + i] for i in range(2))
        return _inputs(see((now + after) / 2), act(fragments.actions[steps[part]]))

    def change(part: np.ndarray) -> np.ndarray:
        return see(fragments.observations[frames[part] + 1]) - see(fragments.observations[frames[part]])

    moments = Moments((0, inputs(part), change(part)) for part in parts)
    weights = moments.weights(np.arange(moments.num_inputs - 1), 1e-3)
    episodes, row = np.unique(fragments.episodes[of], return_inverse=True)
    sums = np.zeros((len(episodes), 4, moments.num_outputs))
    for part in parts:
        predicted, true = inputs(part) @ weights[:-1] + weights[-1], change(part)
        terms = np.stack([true * predicted, predicted**2, true**2, np.ones_like(true)], axis=1)
        heads = np.flatnonzero(np.diff(row[part], prepend=-1))
        np.add.at(sums, row[part][heads], np.add.reduceat(terms, heads))
    return _trusted(dict(zip(episodes.tolist(), sums, strict=True)))


def _trusted(sums: dict[int, np.ndarray]) -> dict[int, float]:
    """The median scale over the entries that the model explains, up to scale, in most episodes."""
    sums = {episode: parts for episode, parts in sums.items() if parts[3, 0] >= MOVES}
    if not sums:
        return {}
    cross, predicted, true, _ = np.moveaxis(np.stack(list(sums.values())), 1, 0)
    fits = np.square(cross) / np.maximum(predicted * true, 1e-30)  # (episodes, entries)
    trusted = np.median(fits, axis=0) > FIT
    scales = {}
    for row, episode in enumerate(sums):
        used = trusted & (fits[row] > LEAST_FIT) & (cross[row] > 0)
        if used.any():
            scales[episode] = float(np.median(cross[row, used] / predicted[row, used]))
    return scales


def _inputs(observed: np.ndarray, acted: np.ndarray) -> np.ndarray:
    """Inputs at the midpoint of two observations, since a position moves by the mean velocity times the step length."""
    few = observed[:, :SQUARED]
    return np.concatenate([observed, products(few), acted, outer(acted, few)], axis=1)
