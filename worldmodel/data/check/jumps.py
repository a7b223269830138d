"""Episodes that run together: cuts a few rows early or late, lost flags, a whole set as one episode.

A regression predicts each change from the observation and the action. Its score is how far a change lies outside the
usual, over all entries together: a contact moves the velocities, a step from one episode into another moves everything.
"""

from dataclasses import dataclass

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.check.fragments import Fragments
from worldmodel.data.episode import Source
from worldmodel.data.spaces import is_continuous, num_features
from worldmodel.regression import Moments, Scale, outer, products

FEWEST = 3  # transitions for each input of the regression, below which nothing is reported
WIDE, SQUARED, ACTIONS = 24, 12, 8  # entries used of an observation, of these in products, of an action
FIT, AT_ONCE = 20_000, 8192  # transitions that are fitted, and that are scored at a time
TRIMMED = 0.05  # share of the changes, the least usual ones, that the second fit leaves out
HELD = 0.5  # an entry that stays as it is in a larger share of the steps is not looked at
NEAR = 8  # steps on each side of a cut in which a misplaced one may lie
CUTS, MISPLACED = 5, 0.5  # boundaries that must be seen, and the share of them that must be misplaced
MOVED, FAR_MOVED = 0.3, 0.5  # of its deviation: how far half of the entries must jump where episodes run together
FAR, GAP, BETWEEN, LEAST = (3, 4.5, 7, 10, 15, 25, 40), 1.6, 0.1, 3  # see _set_apart
ODD, PERIOD, REGULAR, REPEATED, TRIED = 2.0, 20, 0.6, 5, 200  # see _regular


@dataclass(frozen=True)
class Scores:
    """Of each transition of some fragments, in their order; an ordinary one scores about 1."""

    score: np.ndarray  # (S,) exp(mean log(1 + error / usual error)) of the entries
    moved: np.ndarray  # (S,) the change of the entry in the middle, in deviations
    across: np.ndarray  # (K - 1,) the score of the step from a fragment's last observation to the next one's first


class Jumps:
    """The check of where episodes are cut, on the sample."""

    def __init__(self, source: Source) -> None:
        self.path = str(source.path)

    def add(self, block: Block) -> None:
        """Nothing to take: the sample is enough."""

    def findings(self, recording: Recording) -> list[Finding]:
        """At most one finding: misplaced cuts, or cuts that are missing."""
        fragments = recording.fragments
        scores = _scores(fragments, _continuous(recording.source))
        if scores is None:
            return []
        cuts, places = _misplaced(fragments, scores)
        if len(places):
            what = (
                f"the observations jump within the episode, and go on as usual from its end to the beginning of the"
                f" next: so at {len(places)} of the {cuts} cuts between episodes that could be judged. The cuts seem to"
                f" lie {_rows(fragments, places)} from where they belong"
            )
            remedy = "shift them, or the flags that make them: each such step leads from one episode into another"
            return [
                Finding("error", "cuts in the wrong place", _where(recording, places[0]), what, remedy, len(places))
            ]
        places, how = _set_apart(fragments, scores), "far beyond the usual change, in most entries at once"
        if not len(places):
            places, period = _regular(fragments, scores)
            how = f"beyond the usual change every {period} steps"
        if not len(places):
            return []
        steps = ", ".join(str(fragments.step(place)) for place in places[1:4])
        what = f"the observations jump {how}: {len(places)} such steps" + f", further at step {steps}" * bool(steps)
        what += f" of the same or later episodes ({len(scores.score):,} were looked at): episodes seem to run together"
        remedy = "cut there: name the flag or number that ends an episode (in a schema: `episodes`), or {lengths: N}"
        return [Finding("warning", "episodes run together", _where(recording, places[0]), what, remedy, len(places))]


def _where(recording: Recording, place: int) -> str:
    fragments = recording.fragments
    return f"{recording.names[fragments.episodes[fragments.of(place)]]}, step {fragments.step(place)}"


def _rows(fragments: Fragments, places: np.ndarray) -> str:
    """How far the jumps lie from the end or the beginning of their episodes."""
    of = fragments.of(places)
    early = fragments.lengths[of] - 1 - (places - fragments.steps[of])
    off = np.minimum(early, places - fragments.steps[of]) + 1
    least, most = int(off.min()), int(off.max())
    return f"{least} row{'s' * (most > 1)}" if least == most else f"{least} to {most} rows"


def _continuous(source: Source) -> np.ndarray:
    """Which of the sample's entries are of a continuous quantity."""
    leaves = source.observation_space.values()
    return np.concatenate([np.full(min(num_features(leaf), 64), is_continuous(leaf)) for leaf in leaves])


def _scores(fragments: Fragments, continuous: np.ndarray) -> Scores | None:
    """None where the sample is too small, or nothing in it changes continuously."""
    of, frames, steps = fragments.windows(1)
    if not len(of):
        return None
    held = (fragments.observations[frames + 1] == fragments.observations[frames]).mean(axis=0)
    columns = np.flatnonzero(continuous & (held <= HELD))
    observations = fragments.observations[:, columns]
    see, act = Scale(observations, WIDE), Scale(fragments.actions, ACTIONS)
    if not len(see.columns):
        return None
    turn = np.ptp(see(observations), axis=0)

    def parts(of: np.ndarray, to: np.ndarray, actions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and outputs of the regression; without the action where none is known."""
        now = see(observations[of])
        acted = act(fragments.actions[:1])[[0] * len(of)] * 0 if actions is None else act(fragments.actions[actions])
        inputs = [now, products(now[:, :SQUARED]), acted, outer(acted, now[:, :SQUARED])]
        return np.concatenate(inputs, axis=1), see(observations[to]) - now

    def errors(of: np.ndarray, to: np.ndarray, actions: np.ndarray | None) -> np.ndarray:
        """(N, n): of each entry; what goes once around, as angles do, has not moved."""
        inputs, change = parts(of, to, actions)
        error = np.abs(change - inputs @ weights[:-1] - weights[-1])
        return np.minimum(error, np.abs(turn - error))

    if len(of) < FEWEST * parts(frames[:1], frames[:1], steps[:1])[0].shape[1]:
        return None
    some = np.sort(np.random.default_rng(0).permutation(len(of))[:FIT])
    for trimmed in (0.0, TRIMMED):
        chunks = np.array_split(some, -(-len(some) // AT_ONCE))
        moments = Moments((0, *parts(frames[c], frames[c] + 1, steps[c])) for c in chunks)
        weights = moments.weights(np.arange(moments.num_inputs - 1), 1e-3)
        found = np.concatenate([errors(frames[c], frames[c] + 1, steps[c]) for c in chunks])
        usual = np.maximum(np.median(found, axis=0), 1e-9)
        some = some if trimmed else some[(order := _total(found, usual)) <= np.quantile(order, 1 - TRIMMED)]
    score = np.zeros(len(of))
    for c in np.array_split(np.arange(len(of)), -(-len(of) // AT_ONCE)):
        score[c] = _total(errors(frames[c], frames[c] + 1, steps[c]), usual)
    last, first = fragments.frames[:-1] + fragments.lengths[:-1], fragments.frames[1:]
    change = np.abs(observations[frames + 1] - observations[frames])
    change = np.minimum(change, np.ptp(observations, axis=0) - change)
    moved = np.quantile(change / np.maximum(observations.std(axis=0), 1e-12), 0.5, axis=1, method="lower")
    return Scores(score, moved, _total(errors(last, first, None), usual) if len(first) else score[:0])


def _total(errors: np.ndarray, usual: np.ndarray) -> np.ndarray:
    return np.exp(np.log1p(errors / (1.5 * usual)).mean(axis=1)) - 1


def _cuts(fragments: Fragments) -> np.ndarray:
    """The fragments that end where their episode does, and are followed by the beginning of the next one.

    Without those whose last observation is that beginning, or zeros, which are other faults (see Ends).
    """
    cuts = np.flatnonzero(fragments.whole[:-1] & (fragments.begins[1:] == 0) & (np.diff(fragments.episodes) == 1))
    first, last = (fragments.observations[fragments.frames[cuts + 1] - i] for i in range(2))
    return cuts[(first != last).any(axis=1) & last.any(axis=1)]


def _finals(fragments: Fragments) -> np.ndarray:
    """The last steps of the episodes: a wrong last observation is another fault."""
    return (fragments.steps + fragments.lengths - 1)[fragments.whole]


def _misplaced(fragments: Fragments, scores: Scores) -> tuple[int, np.ndarray]:
    """The number of cuts that are seen, and the steps that jump near those that are an ordinary step themselves."""
    cuts, steps = _cuts(fragments), fragments.steps
    if len(cuts) < CUTS:
        return len(cuts), cuts[:0]
    near = steps[cuts + 1][:, None] + np.arange(-NEAR, NEAR)
    inside = (near >= steps[cuts][:, None]) & (near < (steps + fragments.lengths)[cuts + 1][:, None])
    around = np.where(inside, scores.score[np.clip(near, 0, len(scores.score) - 1)], -1)
    places = near[np.arange(len(cuts)), around.argmax(axis=1)]
    highest = scores.score[places]
    odd = np.quantile(np.delete(scores.score, places), 0.99)
    wrong = (highest > scores.across[cuts]) & (highest > odd)
    return len(cuts), places[wrong] if wrong.mean() >= MISPLACED else cuts[:0]


def _set_apart(fragments: Fragments, scores: Scores) -> np.ndarray:
    """The steps that score far higher than all others, with a gap between, and as from one episode to the next."""
    ratio = np.where(scores.moved > FAR_MOVED, scores.score / np.quantile(scores.score, 0.9), 0.0)
    ratio[_finals(fragments)] = 0
    cuts = _cuts(fragments)
    known = np.quantile(scores.across[cuts], 0.25) if len(cuts) >= CUTS else 0.0
    for far in FAR:
        above, between = ratio > far, (ratio > far / GAP) & (ratio <= far)
        above_known = above & (scores.score >= known)
        if above_known.sum() >= LEAST and between.sum() <= BETWEEN * above_known.sum():
            return np.flatnonzero(above_known)
    return cuts[:0]


def _regular(fragments: Fragments, scores: Scores) -> tuple[np.ndarray, int]:
    """Odd steps, if most of the steps a fixed number apart are odd, far more than by chance; and that number."""
    ratio = scores.score / np.quantile(scores.score, 0.9)
    ratio[_finals(fragments)] = 0
    odd = np.flatnonzero((scores.moved > MOVED) & (ratio > ODD))
    places, best = fragments.step(odd) + 1, (0, odd[:0], 0)
    if not REPEATED <= len(odd) <= 2000:
        return best[1:]
    episodes = fragments.episodes[fragments.of(odd)]
    apart = (places[:, None] - places[None, :])[episodes[:, None] == episodes[None, :]]
    values, counts = np.unique(np.concatenate([apart, places]), return_counts=True)
    likely = values >= PERIOD
    values = values[likely][np.argsort(-counts[likely], kind="stable")][:TRIED]
    for period in values.tolist():
        phases, hits = np.unique(places % period, return_counts=True)
        phase, most = phases[np.argmax(hits)], int(hits.max())
        ends = fragments.begins + fragments.lengths
        possible = int(((ends - phase) // period - (fragments.begins - phase) // period).sum())
        by_chance = possible * len(odd) / len(ratio)
        unlikely = most * (np.log(most / by_chance) - 1) > np.log(period * TRIED) + 7
        if most >= max(REPEATED, REGULAR * possible, best[0] + 1) and unlikely:
            best = most, odd[places % period == phase], period
    return best[1:]
