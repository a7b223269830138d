"""Episodes that are copies of each other or share a stretch of steps, in one split or across two."""

from dataclasses import dataclass

import numpy as np

from worldmodel.data.check.finding import Finding, Level, Recording
from worldmodel.data.episode import Episode, Source

RUN = 8  # consecutive steps, observation and action, that must be equal
MOST_KEPT = 4_000_000  # runs kept (24 bytes each); above that every second one, chosen by its hash, and so on
SMALL_WORLD, LONG = 0.5, 64  # if a smaller share of all frames is distinct, only runs of so many steps mean a copy
SHOWN = 3  # further pairs named in a message
ODD = np.random.default_rng(20240229).integers(0, 2**63, 4096, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
BLOCK = 256  # rows hashed at a time, so that a video needs little extra memory


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
        self.lengths: list[int] = []
        self.contents: list[int] = []
        self.frames = self.distinct = self._kept = 0
        self._kept_one_in = 1  # of the runs, chosen by hash, the same in all episodes
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # hash, prefix, (episode, step)

    def add(self, name: str, episode: Episode, frames: np.ndarray) -> None:
        """Take one episode."""
        steps = _mixed([frames[:-1], _row_hashes(episode.actions)])
        before = _prefixes(steps)
        self.lengths.append(len(steps))
        self.contents.append(int(_scramble(before[-1:] + frames[-1:])[0]))
        self.frames += len(frames)
        self.distinct += len(np.unique(frames))
        if len(steps) >= RUN:
            self._remember(steps, before)

    def _remember(self, steps: np.ndarray, before: np.ndarray) -> None:
        """Keep the runs that move and occur once in the episode."""
        runs = _grams(steps, RUN)
        moving = np.convolve(steps[1:] != steps[:-1], np.ones(RUN - 1), "valid") >= RUN // 2
        _, first, counts = np.unique(runs, return_index=True, return_counts=True)
        places = np.sort(first[counts == 1])
        places = places[moving[places] & (runs[places] % np.uint64(self._kept_one_in) == 0)]
        where = np.stack([np.full(len(places), len(self.lengths) - 1), places], axis=1).astype(np.int32)
        self._runs.append((runs[places], before[places], where))
        self._kept += len(places)
        while self._kept > MOST_KEPT:
            self._kept_one_in *= 2
            keep = [hashes % np.uint64(self._kept_one_in) == 0 for hashes, _, _ in self._runs]
            self._runs = [(h[k], b[k], w[k]) for (h, b, w), k in zip(self._runs, keep, strict=True)]
            self._kept = sum(len(hashes) for hashes, _, _ in self._runs)

    def findings(self, recording: Recording) -> list[Finding]:
        """Frames shared by two splits, then copies, then overlaps."""
        self.names = recording.names
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
        contents = np.asarray(self.contents, np.uint64)
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


# --- 64-bit hashes of rows, computed without a loop over the rows -------------------------------------------------


def frame_hashes(episode: Episode) -> np.ndarray:
    """(T + 1,) uint64: a hash of each observation, all keys together."""
    return _mixed([_row_hashes(values) for values in episode.observations.values()])


def _row_hashes(values: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,) uint64; equal for rows with equal bytes, and only by chance (2^-64) for others."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    parts = [_block(rows[begin : begin + BLOCK]) for begin in range(0, len(rows), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _block(rows: np.ndarray) -> np.ndarray:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    words = _scramble(np.ascontiguousarray(padded).view(np.uint64) + np.uint64(rows.shape[1]))
    total = np.zeros(len(rows), np.uint64)
    for begin in range(0, words.shape[1], len(ODD)):
        piece = words[:, begin : begin + len(ODD)]
        total = _scramble(total + (piece * ODD[: piece.shape[1]]).sum(axis=1, dtype=np.uint64))
    return total


def _scramble(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads each bit over the whole word (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mixed(hashes: list[np.ndarray]) -> np.ndarray:
    """One hash (N,) from several (N,), which depends on their order."""
    total = np.zeros_like(hashes[0])
    for part in hashes:
        total = _scramble(total * np.uint64(3) + part)
    return total


def _grams(hashes: np.ndarray, k: int) -> np.ndarray:
    """(N,) -> (N - k + 1,): a hash of each run of k."""
    windows = np.lib.stride_tricks.sliding_window_view(hashes, k)
    return _scramble((windows * ODD[:k]).sum(axis=1, dtype=np.uint64))


def _prefixes(hashes: np.ndarray) -> np.ndarray:
    """(N,) -> (N,): a hash of the rows up to and including each."""
    places = _scramble(np.arange(len(hashes), dtype=np.uint64) + np.uint64(1))
    return np.cumsum(_scramble(hashes ^ places), dtype=np.uint64)
