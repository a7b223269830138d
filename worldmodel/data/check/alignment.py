"""Actions recorded one step too late or too early.

An action that leads from o_t to o_{t+1} carries information about o_{t+1} that earlier observations do not. With s the
stored actions, three regressions of o_{t+1} on the past are compared: with s_{t-1}, with s_t and with s_{t+1} added.
In a canonical recording s_t screens the others off. That alone is no proof: a policy that responds to observations
makes s_{t+1} a copy of o_{t+1}. So "too early" is claimed only for actions that do not respond to what was observed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.check.fragments import Fragments
from worldmodel.data.episode import ALIGNMENT, Source
from worldmodel.regression import Moments, Scale, outer, products

CLEAR = 0.10  # share of the unexplained variance that a misplaced action must explain
SCREENED = 0.2  # share of that which the action in the right place may still add
ANSWERS, FREE = 0.02, 0.02  # see Evidence: above the first, or below the second, a policy may respond to observations
FEWEST = 300  # transitions, below which nothing is reported
ROWS = 40_000  # transitions of the sample that are used
AT_ONCE = 2048  # of these
EXACT = 1e-6  # share of the variance of a change: less unexplained variance is rounding
WIDE, SQUARED, ACTIONS = 24, 20, 12  # entries used of an observation, of these in products, of an action


@dataclass(frozen=True)
class Evidence:
    """Shares of the variance that the past leaves unexplained, for the output where they are largest.

    `previous`: explained by s_{t-1} once s_t is known; `stored`: by s_t once s_{t-1} is known; `stored_next`: by s_t
    once s_{t+1} is known; `next`: by s_{t+1} once s_t is known. For the stored actions: `answers`: share of s_{t+1}
    explained by observations up to o_t once s_t and s_{t-1} are known; `free`: share of s_t not explained by o_t.
    """

    previous: float
    stored: float
    next: float
    stored_next: float
    answers: float
    free: float

    @property
    def late(self) -> bool:
        """Whether s_{t-1} explains what s_t should."""
        return self.previous > CLEAR and self.stored < SCREENED * self.previous

    @property
    def early(self) -> bool:
        """Whether s_{t+1} explains what s_t should, and s does not respond to observations."""
        unanswered = self.answers < ANSWERS and self.free > FREE
        return self.next > CLEAR and self.stored_next < SCREENED * self.next and unanswered and not self.late


class Alignment:
    """The check of the actions' place, on the sample."""

    def __init__(self, source: Source) -> None:
        self.path = str(source.path)

    def add(self, block: Block) -> None:
        """Nothing to take: the sample is enough."""

    def findings(self, recording: Recording) -> list[Finding]:
        """At most one finding: the actions lie one step too late, or one too early."""
        evidence = weigh(recording.fragments)
        if evidence is None:
            return []
        if evidence.late:
            what = (
                f"the action of step t - 1 explains {_percent(evidence.previous)} of what the past leaves unexplained"
                f" in observation t + 1, the action of step t adds {_percent(evidence.stored)}: the stored actions seem"
                " to lie one step late (actions[t] holds the action that followed observation t + 1), or the"
                " environment responds one step late (a delay, or positions without velocities)"
            )
            remedy = (
                "if it has no such delay, drop the first observation and the last action of each episode, so that the"
                " action stored at step t stands beside observation t + 1; canonical: " + ALIGNMENT
            )
            return [Finding("warning", "actions too late", self.path, what, remedy, 1)]
        if not evidence.early:
            return []
        what = (
            f"the action stored at step t + 1 explains {_percent(evidence.next)} of what the past leaves unexplained in"
            f" observation t + 1, the one of step t adds {_percent(evidence.stored_next)}, and the actions do not"
            " respond to observations: the file seems to store beside observation t the action that led to it"
        )
        remedy = (
            "declare the file's alignment as `previous`, or drop the first action and the last observation of each"
            " episode; canonical: " + ALIGNMENT
        )
        return [Finding("error", "actions too early", self.path, what, remedy, 1)]


def _percent(share: float) -> str:
    return f"{min(max(share, 0.0), 1.0):.0%}"


def weigh(fragments: Fragments) -> Evidence | None:
    """The evidence of a sample; None if it is too small, or if the past explains everything."""
    fragments = _some(fragments)
    if (fragments.lengths - 2).sum() < FEWEST or len(fragments) < 2:
        return None
    see, act = Scale(fragments.observations, WIDE), Scale(fragments.actions, ACTIONS)
    if not len(see.columns) or not len(act.columns):
        return None
    n, m = see(fragments.observations[:1]).shape[1], act(fragments.actions[:1]).shape[1]
    effects = _effects(Moments(_dynamics(fragments, see, act)), m, n)
    return None if effects is None else Evidence(*effects, *_answers(Moments(_policy(fragments, see, act)), n, m))


def _some(fragments: Fragments) -> Fragments:
    """Random fragments of at least three steps, about ROWS steps together."""
    order = np.random.default_rng(0).permutation(len(fragments))
    order = order[fragments.lengths[order] >= 3]
    most = int(np.searchsorted(np.cumsum(fragments.lengths[order]), ROWS)) + 1
    return fragments.take(order[:most])


def _steps(fragments: Fragments, see: Scale, act: Scale) -> Iterator[tuple[int, list[np.ndarray], list[np.ndarray]]]:
    """(fold, [o_{t-1}, o_t, o_{t+1}], [s_{t-1}, s_t, s_{t+1}]) of many t; an episode lies in one fold, if it can."""
    _, order = np.unique(fragments.episodes, return_inverse=True)
    fold_of = (order if order.max() else np.arange(len(order))) % 2
    of, frames, steps = fragments.windows(3)
    for fold in range(2):
        rows = np.flatnonzero(fold_of[of] == fold)
        for part in np.array_split(rows, -(-len(rows) // AT_ONCE)) if len(rows) else []:
            observed = [see(fragments.observations[frames[part] + i]) for i in range(3)]
            yield fold, observed, [act(fragments.actions[steps[part] + i]) for i in range(3)]


def _dynamics(fragments: Fragments, see: Scale, act: Scale) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Inputs [s_{t-1}, s_t, s_{t+1}, each with its products, past], outputs o_{t+1} - o_t."""
    for fold, (before, now, after), acted in _steps(fragments, see, act):
        past = np.concatenate([now, now - before], axis=1)
        yield fold, np.concatenate([*(_moves(a, now) for a in acted), past, _bends(past)], axis=1), after - now


def _moves(action: np.ndarray, now: np.ndarray) -> np.ndarray:
    few = now[:, :SQUARED]
    return np.concatenate([action, outer(action, few), products(action)], axis=1)


def _bends(past: np.ndarray) -> np.ndarray:
    """Products and random sigmoids of the past."""
    squared = products(past if past.shape[1] <= SQUARED else past[:, :SQUARED])
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(past.shape[1], 64)) / np.sqrt(past.shape[1])
    return np.concatenate([squared, np.tanh(past @ directions + rng.normal(size=64))], axis=1)


def _effects(moments: Moments, m: int, n: int) -> tuple[float, float, float, float] | None:
    width = m + m * min(n, SQUARED) + m * (m + 1) // 2
    previous, stored, after = (np.arange(k * width, (k + 1) * width) for k in range(3))
    past = np.arange(3 * width, moments.num_inputs - 1)
    variance = moments.errors(np.arange(0))
    alone = moments.errors(past)
    open_ = alone > EXACT * np.maximum(variance, 1e-12)
    if not open_.any():
        return None
    with_ = {
        name: moments.errors(np.concatenate([past, *parts]))
        for name, parts in {
            "s": [stored], "p": [previous], "n": [after], "ps": [previous, stored], "sn": [stored, after]
        }.items()
    }  # fmt: skip

    def gain(without: str, both: str) -> float:
        return float(np.max(((with_[without] - with_[both]) / np.maximum(alone, 1e-30))[open_]))

    return gain("s", "ps"), gain("p", "ps"), gain("s", "sn"), gain("n", "sn")


def _policy(fragments: Fragments, see: Scale, act: Scale) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Inputs [o_t, bends of it, s_t, s_{t-1}, bends of them, o_{t-1}], outputs [s_{t+1}, s_t]."""
    for fold, (before, now, _), (previous, stored, following) in _steps(fragments, see, act):
        lags = np.concatenate([stored, previous], axis=1)
        inputs = [now, _bends(now), lags, _bends(lags), before]
        yield fold, np.concatenate(inputs, axis=1), np.concatenate([following, stored], axis=1)


def _answers(moments: Moments, n: int, m: int) -> tuple[float, float]:
    bends = [64 + (k := min(width, SQUARED)) * (k + 1) // 2 for width in (n, 2 * m)]
    observed = np.arange(n + bends[0])
    lags = np.arange(len(observed), len(observed) + 2 * m + bends[1])
    rest = np.arange(lags[-1] + 1, lags[-1] + 1 + n)
    variance = moments.errors(np.arange(0))
    free = np.min(moments.errors(observed)[m:] / np.maximum(variance[m:], 1e-12))
    # few inputs detect more in little data, many detect nonlinear answers
    plain = moments.errors(lags[: 2 * m]), moments.errors(np.concatenate([observed[:n], lags[: 2 * m], rest]))
    bent = moments.errors(lags), moments.errors(np.concatenate([observed, lags, rest]))
    answers = max(np.max((less - more)[:m] / np.maximum(less[:m], 1e-12)) for less, more in (plain, bent))
    return float(answers), float(free)
