"""Recordings at different sampling rates in one dataset: declared ones, and those that the dynamics betray."""

import math

import numpy as np

from worldmodel.data.check.finding import Finding
from worldmodel.data.check.sample import Fragment, Sample
from worldmodel.data.episode import Episode
from worldmodel.regression import Moments, Scale, outer, products

SAME = 0.01  # relative difference of rates that are one
WIDE, SQUARED = 24, 12  # entries of an observation, and of them in products
ACTIONS = 8
FEWEST = 6  # episodes that can be judged
MOVES = 20  # steps of an episode that can be judged
FIT, LEAST_FIT = 0.7, 0.4  # of the change of an entry, explained up to its scale: in most episodes, and in the one
RATIO = 1.5  # between the scales of two groups
APART = 5.0  # standard deviations within the groups between their means
GROUP = 0.1  # of the episodes, at least, are in the smaller group


class Rates:
    """The check of declared rates, over a stream of episodes."""

    def __init__(self) -> None:
        self.first: dict[float, str] = {}  # rate -> name of the first episode
        self.counts: dict[float, int] = {}

    @property
    def known(self) -> bool:
        """Whether an episode declares its rate."""
        return bool(self.first)

    def add(self, name: str, episode: Episode) -> None:
        """Take one episode."""
        if math.isnan(episode.rate):
            return
        rate = next((known for known in self.first if math.isclose(known, episode.rate, rel_tol=SAME)), episode.rate)
        self.first.setdefault(rate, name)
        self.counts[rate] = self.counts.get(rate, 0) + 1

    def findings(self) -> list[Finding]:
        """What was found."""
        if len(self.first) < 2:
            return []
        usual = max(self.counts, key=lambda rate: self.counts[rate])
        others = sorted(rate for rate in self.first if rate != usual)
        first = min((self.first[rate] for rate in others), key=list(self.first.values()).index)
        told = ", ".join(f"{self.counts[rate]} at {rate:g}" for rate in sorted(self.first)[:6])
        count = sum(self.counts[rate] for rate in others)
        return [_mixed(f"{first}, step 0", f"episodes at different rates (steps a second): {told}", count)]


def rate_findings(sample: Sample, names: list[str]) -> list[Finding]:
    """At most one finding: a group of episodes changes `RATIO` times faster than the dynamics of all of them say."""
    scales = episode_scales(sample)
    split = two_groups(np.log(list(scales.values()))) if len(scales) >= FEWEST else None
    if split is None:
        return []
    ratio, upper = split
    fewer = upper if 2 * upper.sum() <= len(upper) else ~upper
    episodes = np.asarray(list(scales))[fewer]
    faster = "faster" if 2 * upper.sum() <= len(upper) else "slower"
    what = (
        f"in {len(episodes)} of {len(scales)} episodes that could be judged, observations change {ratio:.2g} times"
        f" {faster} a step than in the others, from the same observations and actions: they seem to be sampled at"
        " another rate"
    )
    return [_mixed(f"{names[min(episodes)]}, step 0", what, len(episodes))]


def _mixed(where: str, what: str, count: int) -> Finding:
    remedy = "resample to one rate, or train on each apart: one model learns one step length"
    return Finding("warning", "mixed sampling rates", where, what, remedy, count)


def two_groups(logs: np.ndarray) -> tuple[float, np.ndarray] | None:
    """(ratio, which are in the upper group) if the values fall into two narrow groups far apart; else None."""
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


def episode_scales(sample: Sample) -> dict[int, float]:
    """Episode -> its change a step over the change that a model of all episodes predicts, where that fits well."""
    fragments = [fragment for fragment in sample.fragments if len(fragment.actions) >= 2]
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
    """The median scale over the entries that the model explains, up to a scale, in most episodes."""
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
    """Of the middle between two observations: a position moves by the mean velocity times the step length."""
    seen, acted = see((fragment.observations[:-1] + fragment.observations[1:]) / 2), act(fragment.actions)
    return np.concatenate([seen, products(seen[:, :SQUARED]), acted, outer(acted, seen[:, :SQUARED])], axis=1)
