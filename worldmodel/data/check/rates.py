"""Recordings at different sampling rates in one dataset, declared or evident from the dynamics."""

import math

import numpy as np

from worldmodel.data.check.finding import Finding, Fragment, Recording
from worldmodel.data.episode import Episode, Source
from worldmodel.regression import Moments, Scale, outer, products

SAME = 0.01  # relative difference below which two rates are the same
WIDE, SQUARED = 24, 12  # entries of an observation used, and of these in products
ACTIONS = 8  # entries of an action used
FEWEST = 6  # episodes that can be judged, below which nothing is reported
MOVES = 20  # steps that an episode must have to be judged
FIT, LEAST_FIT = 0.7, 0.4  # share of an entry's change that the model explains up to scale: in most episodes, in one
RATIO = 1.5  # least ratio between the scales of two groups
APART = 5.0  # least distance of the groups' means, in standard deviations within the groups
GROUP = 0.1  # least share of the episodes in the smaller group


class Rates:
    """The check of sampling rates: of the declared ones, or where there are none of the dynamics."""

    def __init__(self, source: Source) -> None:
        self.first: dict[float, str] = {}  # rate -> name of the first episode
        self.counts: dict[float, int] = {}

    def add(self, name: str, episode: Episode, frames: np.ndarray) -> None:
        """Take one episode."""
        if math.isnan(episode.rate):
            return
        rate = next((known for known in self.first if math.isclose(known, episode.rate, rel_tol=SAME)), episode.rate)
        self.first.setdefault(rate, name)
        self.counts[rate] = self.counts.get(rate, 0) + 1

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
    split = _two_groups(np.log(list(scales.values()))) if len(scales) >= FEWEST else None
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


def _two_groups(logs: np.ndarray) -> tuple[float, np.ndarray] | None:
    """(ratio, which are in the upper group) if the values form two narrow groups far apart; else None."""
    order = np.sort(logs)
    cuts = (order[1:] + order[:-1]) / 2
    spreads = [sum(np.square(g - g.mean()).sum() for g in (order[: i + 1], order[i + 1 :])) for i in range(len(cuts))]
    upper = logs > cuts[int(np.argmin(spreads))]
    fewest = max(3, GROUP * len(logs))
    if min(upper.sum(), (~upper).sum()) < fewest:
        return None
    gap = logs[upper].mean() - logs[~upper].mean()
    spread = np.sqrt(min(spreads) / len(logs))
    if gap < math.log(RATIO) or gap < APART * spread:
        return None
    return math.exp(gap), upper


def _episode_scales(fragments: list[Fragment]) -> dict[int, float]:
    """Episode -> its change per step over the change that a model of all episodes predicts, where that fits well."""
    fragments = [fragment for fragment in fragments if len(fragment.actions) >= 2]
    if len(fragments) < 2:
        return {}
    see = Scale(np.concatenate([f.observations for f in fragments]), WIDE)
    act = Scale(np.concatenate([f.actions for f in fragments]), ACTIONS)
    if not len(see.columns):
        return {}
    inputs = {id(fragment): _inputs(fragment, see, act) for fragment in fragments}
    moments = Moments((0, inputs[id(f)], np.diff(see(f.observations), axis=0)) for f in fragments)
    weights = moments.weights(np.arange(moments.num_inputs - 1), 1e-3)
    sums: dict[int, np.ndarray] = {}
    for fragment in fragments:
        predicted = inputs[id(fragment)] @ weights[:-1] + weights[-1]
        true = np.diff(see(fragment.observations), axis=0)
        ones = np.full(true.shape[1], len(true))
        parts = np.stack([(true * predicted).sum(0), np.square(predicted).sum(0), np.square(true).sum(0), ones])
        sums[fragment.episode] = sums.get(fragment.episode, 0) + parts
    return _trusted(sums)


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


def _inputs(fragment: Fragment, see: Scale, act: Scale) -> np.ndarray:
    """Inputs at the midpoint of two observations, since a position moves by the mean velocity times the step length."""
    observed, acted = see((fragment.observations[:-1] + fragment.observations[1:]) / 2), act(fragment.actions)
    return np.concatenate(
        [observed, products(observed[:, :SQUARED]), acted, outer(acted, observed[:, :SQUARED])], axis=1
    )
