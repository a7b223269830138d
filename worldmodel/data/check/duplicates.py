"""Episodes that are copies of each other or share a stretch of steps, in one split or across two."""

from dataclasses import dataclass

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Level, Recording
from worldmodel.data.check.hashes import grams, mixed, row_hashes, scrambled
from worldmodel.data.episode import Source

RUN = 8  # consecutive steps, observation and action, that must be equal
MOST_KEPT = 4_000_000  # runs kept (24 bytes each); above that every second one, chosen by its hash, and so on
SMALL_WORLD, LONG = 0.5, 64  # if a smaller share of all frames is distinct, only runs of so many steps mean a copy
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

    def __init__(self, source: Source) -> None:
        self.names: list[str] = []
        self._lengths: list[np.ndarray] = []  # T of each episode
        self._contents: list[np.ndarray] = []  # a hash of each episode
        self.frames = self.distinct = self._kept = 0
        self._kept_one_in = 1  # of the runs, chosen by hash, the same in all episodes
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # hash, prefix, (episode, step)

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        frames, of = block.frames, block.step_episodes
        steps = mixed([frames[block.before], row_hashes(block.actions)])
        places = np.arange(len(steps)) - block.steps[of]
        before = np.cumsum(scrambled(steps ^ scrambled(places.astype(np.uint64) + np.uint64(1))), dtype=np.uint64)
        before -= np.append(np.uint64(0), before)[block.steps[of]]  # a hash of the steps up to and including each
        ends = block.steps + block.lengths - 1
        self._lengths.append(block.lengths)
        self._contents.append(scrambled(before[ends] + frames[block.lasts]))
        self.frames += len(frames)
        self.distinct += len(np.unique(mixed([block.frame_episodes.astype(np.uint64), frames])))
        if len(steps) >= RUN:
            self._remember(block, steps, before, places)

    def _remember(self, block: Block, steps: np.ndarray, before: np.ndarray, places: np.ndarray) -> None:
        """Keep the runs that move and occur once in their episode."""
        runs, of = grams(steps, RUN), block.step_episodes[: len(steps) - RUN + 1]
        moves = np.cumsum(np.append(0, steps[1:] != steps[:-1]))
        moving = moves[RUN - 1 :] - moves[: len(runs)] >= RUN // 2
        within = places[: len(runs)] + RUN <= block.lengths[of]
        rows = np.flatnonzero(moving & within)
        _, first, counts = np.unique(
            mixed([of[rows].astype(np.uint64), runs[rows]]), return_index=True, return_counts=True
        )
        rows = rows[np.sort(first[counts == 1])]
        rows = rows[runs[rows] % np.uint64(self._kept_one_in) == 0]
        where = np.stack([block.first + of[rows], places[rows]], axis=1).astype(np.int32)
        self._runs.append((runs[rows], before[rows], where))
        self._kept += len(rows)
        while self._kept > MOST_KEPT:
            self._kept_one_in *= 2
            keep = [hashes % np.uint64(self._kept_one_in) == 0 for hashes, _, _ in self._runs]
            self._runs = [(h[k], b[k], w[k]) for (h, b, w), k in zip(self._runs, keep, strict=True)]
            self._kept = sum(len(hashes) for hashes, _, _ in self._runs)

    def findings(self, recording: Recording) -> list[Finding]:
        """Frames shared by two splits, then copies, then overlaps."""
        if not self._lengths:
            return []
        self.names = recording.names
        self.lengths, self.contents = np.concatenate(self._lengths).tolist(), np.concatenate(self._contents)
        copies, overlaps = self._copies(), self._overlaps()
        return [
            *self._divided(copies + overlaps, recording.splits),
            *self._finding("warning", "duplicated episodes", copies, "drop the copies: they count twice"),
            *self._finding("warning", "overlapping episodes", overlaps, "cut without overlap, or use one split"),
        ]

    @property
    def least(self) -> int:
        """Steps that a pair must share: more where frames recur by themselves."""
        return LONG if self.distinct < SMALL_WORLD * self.frames else RUN

    def _copies(self) -> list[Pair]:
        contents = self.contents
        order = np.argsort(contents, kind="stable")
        same = np.flatnonzero(contents[order][1:] == contents[order][:-1])
        pairs = [(int(order[i]), int(order[i + 1])) for i in same]
        copies = [Pair(one, other, 0, 0, self.lengths[one]) for one, other in pairs if self.lengths[one] >= self.least]
        return sorted(copies, key=lambda pair: (pair.episode, pair.other))

    def _overlaps(self) -> list[Pair]:
        if not self._runs:
            return []
        hashes, before, where = (np.concatenate(parts) for parts in zip(*self._runs, strict=True))
        order = np.argsort(hashes, kind="stable")
        hashes, before, where = hashes[order], before[order], where[order]
        one, other = where[:-1], where[1:]
        shared = (hashes[1:] == hashes[:-1]) & (one[:, 0] != other[:, 0])
        # equal from the start: a deterministic reset and the same first actions
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
            steps = min(extent, (end - begin) * self._kept_one_in + RUN - 1)  # distant steps can be equal by chance
            (episode, step), (second, second_step) = one[begin].tolist(), other[begin].tolist()
            pair = Pair(episode, second, step, second_step, steps)
            known = longest.get((episode, second))
            if self._is_overlap(pair) and (known is None or known.steps < steps):
                longest[episode, second] = pair
        return [longest[key] for key in sorted(longest)]

    def _is_overlap(self, pair: Pair) -> bool:
        """Whether the stretch is long enough, and not just two paths that meet and stay together to their ends."""
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
            if len(sides := {side[pair.episode], side[pair.other]}) == 2
            and "" not in sides
            and ("train" in sides or "train" not in splits)
        ]
        whose = f"{side[apart[0].episode]} and {side[apart[0].other]} share frames: " if apart else ""
        remedy = "drop the copies, or give the clips of one recording one split: scores on shared frames mean nothing"
        return self._finding("error", "splits share frames", apart, remedy, whose)

    def _finding(self, level: Level, check: str, pairs: list[Pair], remedy: str, whose: str = "") -> list[Finding]:
        if not pairs:
            return []
        names, first = self.names, pairs[0]
        what = f"{whose}{first.steps} steps (observations and actions) are equal to those of {names[first.episode]}"
        what += f" from step {first.step}"
        if len(pairs) > 1:
            named = "; ".join(f"{names[pair.episode]} = {names[pair.other]}" for pair in pairs[1 : 1 + SHOWN])
            what += f"; {len(pairs)} such pairs, further: {named}"
        return [Finding(level, check, f"{names[first.other]}, step {first.other_step}", what, remedy, len(pairs))]
