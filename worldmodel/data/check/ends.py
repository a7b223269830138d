"""How episodes end: lost final observations, time limits flagged as terminal states, lost flags."""

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Level, Recording
from worldmodel.data.episode import Source

MOST = 0.5  # share of the episodes of a kind above which an oddity is a fault
RARE = 0.05  # share of the inner steps that may show the same oddity
FEWEST = 3  # episodes that must show it
SIMULATORS = 16  # episodes that may have been cut when the recording ended, one per simulator
INNER = 1_000_000  # hashes of inner frames kept
Kind = str
KINDS: tuple[Kind, ...] = ("terminated", "truncated", "open")


class Ends:
    """The checks of how episodes end, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        self.names: list[str] = []
        self.parts: list[tuple[np.ndarray, ...]] = []  # of each episode: see findings()
        self.inner = self.inner_repeats = self.inner_zeros = self._kept = 0
        self.inner_hashes: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        frames, starts, lasts = block.frames, block.starts, block.lasts
        zero = np.ones(len(frames), bool)
        for values in block.observations.values():
            zero[zero] = ~values.reshape(len(values), -1)[zero].any(axis=1)
        repeats = np.append(False, frames[1:] == frames[:-1])  # the frame before, or that of another episode
        inner = np.ones(len(frames), bool)
        inner[starts] = inner[lasts] = False
        self.inner += int(inner.sum())
        self.inner_repeats += int((repeats & inner).sum())
        self.inner_zeros += int((zero & inner).sum())
        kinds = np.where(block.terminated, 0, np.where(block.truncated, 1, 2))
        self.parts.append((kinds, block.lengths, frames[starts], frames[lasts], repeats[lasts], zero[lasts]))
        if self._kept < INNER:
            self.inner_hashes.append(frames[inner])
            self._kept += int(inner.sum())

    def findings(self, recording: Recording) -> list[Finding]:
        """Final observations first, then flags."""
        if not self.parts:
            return []
        self.names = recording.names
        kinds, self.lengths, self.firsts, self.finals, self.repeats, self.zeros = map(
            np.concatenate, zip(*self.parts, strict=True)
        )
        self.of = {kind: np.flatnonzero(kinds == i) for i, kind in enumerate(KINDS) if (kinds == i).any()}
        flags = [*self._time_limit(), *self._open(), *self._lost_flags()]
        return [*self._no_final(), *self._reset_as_final(), *flags, *self._single()]

    def _no_final(self) -> list[Finding]:
        findings = []
        for kind, rows in self.of.items():
            repeats, zeros = rows[self.repeats[rows]], rows[self.zeros[rows]]
            if _most(repeats, rows) and self.inner_repeats <= RARE * self.inner:
                findings.append(self._last("warning", kind, repeats, "repeats the one before"))
            if _most(zeros, rows) and self.inner_zeros <= RARE * self.inner:
                findings.append(self._last("error", kind, zeros, "is all zeros"))
        return findings

    def _reset_as_final(self) -> list[Finding]:
        inner = np.concatenate(self.inner_hashes)
        if np.isin(inner, self.firsts).sum() > RARE * max(len(inner), 1):
            return []
        # of any episode: with several simulators the next one in the file need not be the same simulator's
        resets = np.isin(self.finals, self.firsts)
        how = "is the first observation of an episode (that of a reset)"
        found = [(kind, rows[resets[rows]], rows) for kind, rows in self.of.items()]
        return [self._last("error", kind, some, how) for kind, some, rows in found if _most(some, rows)]

    def _last(self, level: Level, kind: Kind, rows: np.ndarray, how: str) -> Finding:
        what = f"in {len(rows)} of {len(self.of[kind])} {kind} episodes the last observation {how}"
        remedy = "record the observation that step() returned (under autoreset: info['final_obs']), or drop the last"
        remedy += " transition of these episodes"
        return Finding(level, "no final observation", self._end(rows[0]), what, remedy, len(rows))

    def _end(self, row: int) -> str:
        return f"{self.names[row]}, step {self.lengths[row]}"

    def _time_limit(self) -> list[Finding]:
        longest = int(self.lengths.max())
        rows = np.flatnonzero(self.lengths == longest)
        terminal = np.intersect1d(rows, self.of.get("terminated", rows[:0]))
        spike = len(rows) >= max(5, 0.05 * len(self.lengths), 3 * self._neighbours(longest))
        if longest < 2 or not spike or len(terminal) < 0.9 * len(rows):
            return []
        what = f"{len(terminal)} of {len(self.lengths)} episodes end after exactly {longest} steps, the most of all,"
        what += " and are flagged terminated"
        remedy = "if a time limit ended them, flag them truncated: the model would learn that states end for no reason"
        return [
            Finding("warning", "time limit flagged terminated", self._end(terminal[0]), what, remedy, len(terminal))
        ]

    def _neighbours(self, longest: int) -> int:
        """The most frequent of the lengths just below the longest."""
        near = self.lengths[(self.lengths >= int(0.9 * longest)) & (self.lengths < longest)]
        return int(np.unique(near, return_counts=True)[1].max(initial=0))

    def _open(self) -> list[Finding]:
        rows = self.of.get("open")
        if rows is None:
            return []
        what = f"{len(rows)} of {len(self.names)} episodes are neither terminated nor truncated"
        remedy = "flag how they ended; truncated, if the recording was cut"
        return [Finding("warning", "no end", self._end(rows[0]), what, remedy, len(rows))]

    def _lost_flags(self) -> list[Finding]:
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        short = np.flatnonzero(self.lengths < longest)
        if "terminated" in self.of or "open" in self.of or len(short) <= SIMULATORS:
            return []
        if shortest > 0.7 * longest or len(short) < 0.2 * len(self.lengths):
            return []
        what = f"all {len(self.names)} episodes are flagged truncated, though their lengths differ"
        what += f" ({shortest} to {longest} steps): the flag of terminal states may be lost"
        remedy = "if the environment has terminal states, store `terminated`; if people or a budget ended the episodes,"
        remedy += " all is well"
        return [Finding("warning", "no episode terminated", self._end(short[0]), what, remedy, len(short))]

    def _single(self) -> list[Finding]:
        if len(self.names) > 1:
            return []
        what = f"all is one episode, of {self.lengths[0]:,} steps: there is no other to validate or test on"
        remedy = "if it holds several, say where they begin (in a schema: `episodes`); of one recording,"
        remedy += " --data.folds 5 holds out a block"
        return [Finding("warning", "one episode", f"{self.names[0]}, step 0", what, remedy, 1)]


def _most(rows: np.ndarray, of: np.ndarray) -> bool:
    return len(rows) >= FEWEST and len(rows) > MOST * len(of)
