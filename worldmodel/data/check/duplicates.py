"""Episodes that are copies of each other or share a stretch of steps, and those that the split puts on two sides."""

from dataclasses import dataclass

import numpy as np

from worldmodel.data.check.finding import Finding
from worldmodel.data.check.hashing import grams, mixed, prefixes, row_hashes, scramble
from worldmodel.data.episode import Episode

RUN = 8  # steps, observation and action, that must be equal
MOST_KEPT = 4_000_000  # runs remembered (24 bytes each); beyond, every second one by its hash, and so on
SMALL_WORLD, LONG = 0.5, 64  # where fewer frames of an episode differ, only runs of so many steps tell a copy
SHOWN = 3  # further pairs named in a message


@dataclass(frozen=True)
class Pair:
    """Two episodes that share steps: from `step` of one and `other_step` of the other."""

    episode: int
    other: int
    step: int
    other_step: int
    steps: int


class Duplicates:
    """The checks for steps that occur in several episodes, over a stream of episodes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.contents: list[int] = []
        self.frames = self.distinct = self._kept = 0
        self._kept_one_in = 1  # of the runs, chosen by hash, the same in all episodes
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # hash, prefix, (episode, step)

    def add(self, name: str, episode: Episode) -> None:
        """Take one episode."""
        seen = mixed([row_hashes(values) for values in episode.observations.values()])
        steps = mixed([seen[:-1], row_hashes(episode.actions)])
        before = prefixes(steps)
        self.names.append(name)
        self.lengths.append(len(steps))
        self.contents.append(int(scramble(before[-1:] + seen[-1:])[0]))
        self.frames += len(seen)
        self.distinct += len(np.unique(seen))
        if len(steps) >= RUN:
            self._remember(steps, before)

    def _remember(self, steps: np.ndarray, before: np.ndarray) -> None:
        """Keep the runs that do not stand still and occur once in the episode."""
        runs = grams(steps, RUN)
        moving = np.convolve(steps[1:] != steps[:-1], np.ones(RUN - 1), "valid") >= RUN // 2
        _, first, counts = np.unique(runs, return_index=True, return_counts=True)
        places = np.sort(first[counts == 1])
        places = places[moving[places] & (runs[places] % np.uint64(self._kept_one_in) == 0)]
        where = np.stack([np.full(len(places), len(self.names) - 1), places], axis=1).astype(np.int32)
        self._runs.append((runs[places], before[places], where))
        self._kept += len(places)
        while self._kept > MOST_KEPT:
            self._kept_one_in *= 2
            keep = [hashes % np.uint64(self._kept_one_in) == 0 for hashes, _, _ in self._runs]
            self._runs = [(h[k], b[k], w[k]) for (h, b, w), k in zip(self._runs, keep, strict=True)]
            self._kept = sum(len(hashes) for hashes, _, _ in self._runs)

    def findings(self, splits: dict[str, np.ndarray]) -> list[Finding]:
        """What was found; `splits`: name -> indices of episodes."""
        copies, overlaps = self._copies(), self._overlaps()
        return [
            *self._divided(copies + overlaps, splits),
            *self._told("duplicated episodes", copies, "drop the copies: they count several times, and inflate scores"),
            *self._told(
                "overlapping episodes",
                overlaps,
                "cut the recordings into episodes without overlap, or keep clips of one recording in one split",
            ),
        ]

    @property
    def least(self) -> int:
        """Steps that a pair must share: more where frames come back by themselves."""
        return LONG if self.distinct < SMALL_WORLD * self.frames else RUN

    def _copies(self) -> list[Pair]:
        contents = np.asarray(self.contents, np.uint64)
        order = np.argsort(contents, kind="stable")
        same = np.flatnonzero(contents[order][1:] == contents[order][:-1])
        pairs = [(int(order[i]), int(order[i + 1])) for i in same]
        found = [Pair(one, other, 0, 0, self.lengths[one]) for one, other in pairs if self.lengths[one] >= self.least]
        return sorted(found, key=lambda pair: (pair.episode, pair.other))

    def _overlaps(self) -> list[Pair]:
        if not self._runs:
            return []
        hashes, before, where = (np.concatenate(parts) for parts in zip(*self._runs, strict=True))
        order = np.argsort(hashes, kind="stable")
        hashes, before, where = hashes[order], before[order], where[order]
        one, other = where[:-1], where[1:]
        shared = (hashes[1:] == hashes[:-1]) & (one[:, 0] != other[:, 0])
        # equal from the start on: a deterministic reset and the same first actions
        shared &= ~((one[:, 1] == other[:, 1]) & (before[1:] == before[:-1]))
        return self._pairs(one[shared], other[shared])

    def _pairs(self, one: np.ndarray, other: np.ndarray) -> list[Pair]:
        """The longest stretch of each pair of episodes, from shared runs: rows (episode, step) of both."""
        if not len(one):
            return []
        offset = other[:, 1] - one[:, 1]
        order = np.lexsort((one[:, 1], offset, other[:, 0], one[:, 0]))
        one, other, offset = one[order], other[order], offset[order]
        key = np.stack([one[:, 0], other[:, 0], offset], axis=1)
        begins = np.flatnonzero(np.any(np.diff(key, axis=0, prepend=key[:1] - 1) != 0, axis=1))
        longest: dict[tuple[int, int], Pair] = {}
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(one)], strict=True):
            extent = int(one[end - 1, 1] - one[begin, 1]) + RUN
            steps = min(extent, (end - begin) * self._kept_one_in + RUN - 1)  # by chance, places far apart can be equal
            (episode, step), (second, second_step) = one[begin].tolist(), other[begin].tolist()
            pair = Pair(episode, second, step, second_step, steps)
            known = longest.get((episode, second))
            if self._is_overlap(pair) and (known is None or known.steps < steps):
                longest[episode, second] = pair
        return [longest[key] for key in sorted(longest)]

    def _is_overlap(self, pair: Pair) -> bool:
        """Whether the stretch is long enough, and no meeting of two paths that stay together to their ends."""
        left = [self.lengths[e] - s - pair.steps for e, s in ((pair.episode, pair.step), (pair.other, pair.other_step))]
        met = min(pair.step, pair.other_step) > RUN and max(left) <= RUN
        whole = self.contents[pair.episode] == self.contents[pair.other]
        return pair.steps >= self.least and not met and not whole

    def _divided(self, pairs: list[Pair], splits: dict[str, np.ndarray]) -> list[Finding]:
        side = dict.fromkeys(range(len(self.names)), "")
        for name, indices in splits.items():
            side.update(dict.fromkeys(np.asarray(indices).tolist(), name))
        apart = [
            pair
            for pair in pairs
            if (sides := {side[pair.episode], side[pair.other]}) - {""} == sides
            and len(sides) == 2
            and ("train" in sides or "train" not in splits)
        ]
        if not apart:
            return []
        first = apart[0]
        both = f"{side[first.episode]} and {side[first.other]} share frames: {self._tell(first)}{self._more(apart)}"
        remedy = "drop the copies, or give the clips of one recording one split: scores on shared frames mean nothing"
        return [Finding("error", "splits share frames", self._place(first), both, remedy, len(apart))]

    def _told(self, check: str, pairs: list[Pair], remedy: str) -> list[Finding]:
        if not pairs:
            return []
        what = f"{self._tell(pairs[0])}{self._more(pairs)}"
        return [Finding("warning", check, self._place(pairs[0]), what, remedy, len(pairs))]

    def _place(self, pair: Pair) -> str:
        return f"{self.names[pair.other]}, step {pair.other_step}"

    def _tell(self, pair: Pair) -> str:
        return (
            f"{pair.steps} steps (observations and actions) are equal to those of {self.names[pair.episode]}"
            f" from step {pair.step}"
        )

    def _more(self, pairs: list[Pair]) -> str:
        if len(pairs) == 1:
            return ""
        named = "; ".join(f"{self.names[p.episode]} = {self.names[p.other]}" for p in pairs[1 : 1 + SHOWN])
        return f"; {len(pairs)} such pairs, further: {named}"
