"""How episodes end: lost final observations, time limits flagged as terminal states, lost flags."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from worldmodel.data.check.finding import Finding, Level, Recording
from worldmodel.data.episode import Episode, Source

MOST = 0.5  # share of the episodes of a kind above which an oddity is a fault
RARE = 0.05  # share of the inner steps that may show the same oddity
FEWEST = 3  # episodes that must show it
SIMULATORS = 16  # episodes that may have been cut when the recording ended, one per simulator
INNER = 1_000_000  # hashes of inner frames kept
Kind = str  # "terminated", "truncated", "open"


@dataclass
class Tally:
    """Episodes that end in one way: all, and the names of those whose last observation is a repetition or all zeros."""

    episodes: int = 0
    repeats: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)


class Ends:
    """The checks of how episodes end, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        self.names: list[str] = []
        self.kinds: list[Kind] = []
        self.lengths: list[int] = []
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        self.tallies: dict[Kind, Tally] = {}
        self.inner = self.inner_repeats = self.inner_zeros = self._kept = 0
        self.inner_hashes: list[np.ndarray] = []

    def add(self, name: str, episode: Episode, frames: np.ndarray) -> None:
        """Take one episode."""
        kind = "terminated" if episode.terminated else "truncated" if episode.truncated else "open"
        zero = np.all(
            [~values.reshape(len(values), -1).any(axis=1) for values in episode.observations.values()], axis=0
        )
        repeated = frames[1:] == frames[:-1]
        tally = self.tallies.setdefault(kind, Tally())
        tally.episodes += 1
        if repeated[-1]:
            tally.repeats.append(name)
        if zero[-1]:
            tally.zeros.append(name)
        self.inner += len(repeated) - 1
        self.inner_repeats += int(repeated[:-1].sum())
        self.inner_zeros += int(zero[1:-1].sum())
        self.kinds.append(kind)
        self.lengths.append(len(episode))
        self.firsts.append(int(frames[0]))
        self.lasts.append(int(frames[-1]))
        if self._kept < INNER:
            self.inner_hashes.append(frames[1:-1])
            self._kept += len(frames) - 2

    def findings(self, recording: Recording) -> list[Finding]:
        """Final observations first, then flags."""
        self.names = recording.names
        return [*self._no_final(), *self._reset_as_final(), *self._time_limit(), *self._open(), *self._lost_flags()]

    def _no_final(self) -> list[Finding]:
        findings = []
        for kind, tally in self.tallies.items():
            if _most(tally.repeats, tally.episodes) and self.inner_repeats <= RARE * self.inner:
                how = "repeats the one before"
                findings.append(self._last("warning", kind, tally.repeats, tally.episodes, how))
            if _most(tally.zeros, tally.episodes) and self.inner_zeros <= RARE * self.inner:
                findings.append(self._last("error", kind, tally.zeros, tally.episodes, "is all zeros"))
        return findings

    def _reset_as_final(self) -> list[Finding]:
        findings = []
        firsts = np.asarray(self.firsts, np.uint64)
        inner = np.concatenate(self.inner_hashes) if self.inner_hashes else np.zeros(0, np.uint64)
        if np.isin(inner, firsts).sum() > RARE * max(len(inner), 1):
            return []
        kinds, lasts = np.asarray(self.kinds), np.asarray(self.lasts, np.uint64)
        # of any episode: with several simulators the next one in the file need not be the same simulator's
        resets = np.isin(lasts, firsts)
        for kind in self.tallies:
            rows = np.flatnonzero(kinds == kind)
            names = [self.names[row] for row in rows[resets[rows]]]
            if _most(names, len(rows)):
                how = "is the first observation of an episode (that of a reset)"
                findings.append(self._last("error", kind, names, len(rows), how))
        return findings

    def _last(self, level: Level, kind: Kind, names: list[str], episodes: int, how: str) -> Finding:
        where = f"{names[0]}, step {self.lengths[self.names.index(names[0])]}"
        what = f"in {len(names)} of {episodes} {kind} episodes the last observation {how}"
        remedy = "record the observation that step() returned (under autoreset: info['final_obs']), or drop the last"
        remedy += " transition of these episodes"
        return Finding(level, "no final observation", where, what, remedy, len(names))

    def _time_limit(self) -> list[Finding]:
        longest = max(self.lengths, default=0)
        rows = [i for i, length in enumerate(self.lengths) if length == longest]
        terminal = [i for i in rows if self.kinds[i] == "terminated"]
        spike = len(rows) >= max(5, 0.05 * len(self.lengths), 3 * self._neighbours(longest))
        if longest < 2 or not spike or len(terminal) < 0.9 * len(rows):
            return []
        where = f"{self.names[terminal[0]]}, step {longest}"
        what = f"{len(terminal)} of {len(self.lengths)} episodes end after exactly {longest} steps, the most of all,"
        what += " and are flagged terminated"
        remedy = "if a time limit ended them, flag them truncated: the model would learn that states end for no reason"
        return [Finding("warning", "time limit flagged terminated", where, what, remedy, len(terminal))]

    def _neighbours(self, longest: int) -> int:
        """The most frequent of the lengths just below the longest."""
        counts = Counter(self.lengths)
        return max((counts[length] for length in range(int(0.9 * longest), longest)), default=0)

    def _open(self) -> list[Finding]:
        rows = [i for i, kind in enumerate(self.kinds) if kind == "open"]
        if not rows:
            return []
        what = f"{len(rows)} of {len(self.kinds)} episodes are neither terminated nor truncated"
        remedy = "flag how they ended; truncated, if the recording was cut"
        where = f"{self.names[rows[0]]}, step {self.lengths[rows[0]]}"
        return [Finding("warning", "no end", where, what, remedy, len(rows))]

    def _lost_flags(self) -> list[Finding]:
        longest = max(self.lengths, default=0)
        short = [i for i, length in enumerate(self.lengths) if length < longest]
        if "terminated" in self.kinds or "open" in self.kinds or len(short) <= SIMULATORS:
            return []
        if min(self.lengths) > 0.7 * longest or len(short) < 0.2 * len(self.lengths):
            return []
        where = f"{self.names[short[0]]}, step {self.lengths[short[0]]}"
        what = f"all {len(self.kinds)} episodes are flagged truncated, though their lengths differ"
        what += f" ({min(self.lengths)} to {longest} steps): the flag of terminal states may be lost"
        remedy = "if the environment has terminal states, store `terminated`; if people or a budget ended the episodes,"
        remedy += " all is well"
        return [Finding("warning", "no episode terminated", where, what, remedy, len(short))]


def _most(names: list[str], episodes: int) -> bool:
    return len(names) >= FEWEST and len(names) > MOST * episodes
