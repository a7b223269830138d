"""Timestamps among the observations that skip, go back, or disagree with the declared rate."""

import re
from dataclasses import dataclass, field

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Places, Recording
from worldmodel.data.episode import Source
from worldmodel.data.spaces import Json, image_shape

NAME = re.compile(r"time|stamp|clock|frame_?index|(^|[/._])(t|ts|seconds|steps?)$", re.IGNORECASE)
FORWARD = 0.97  # share of the steps in which a clock advances
EVEN, NAMED = 1e-3, 0.2  # usual deviation of its steps, of a step: of one that no name tells, and of one with a name
SKIP = 1.5  # usual steps
OFF = 0.01  # by which it may disagree with the declared rate
SECOND, NEAR = (1.0, 1e3, 1e6, 1e9), 8.0  # a second in the clock's unit, and the ratio up to which it is taken for one


@dataclass
class Clock:
    """An entry that advances evenly, and where it does not."""

    title: str
    step: float  # the usual one
    skips: Places = field(default_factory=Places)
    back: Places = field(default_factory=Places)
    skipped: int = 0
    even: np.ndarray = field(default_factory=lambda: np.zeros(3))  # steps, what they add up to, and at the rate


class Clocks:
    """The check of the entries of observations that are clocks, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        self.clocks: dict[tuple[str, int], Clock] | None = None
        self.spaces = {key: leaf for key, leaf in source.observation_space.items() if _may_be(leaf)}

    def add(self, block: Block) -> None:
        """Take the next episodes; the first block shows which entries are clocks."""
        keys = [key for key in self.spaces if key in block.observations]
        if self.clocks is None:
            self.clocks = {place: clock for key in keys for place, clock in _find(key, block)}
        for (key, entry), clock in [*self.clocks.items()]:
            if key in keys and not _take(clock, _changes(block, key)[:, entry], block):
                del self.clocks[key, entry]

    def findings(self, recording: Recording) -> list[Finding]:
        """Of each clock."""
        return [finding for clock in (self.clocks or {}).values() for finding in _findings(clock)]


def _may_be(leaf: Json) -> bool:
    return leaf["type"] == "Box" and image_shape(leaf) is None


def _changes(block: Block, key: str) -> np.ndarray:
    values = block.observations[key].reshape(len(block.observations[key]), -1)
    values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return (values[block.before + 1] - values[block.before]).astype(np.float64)


def _find(key: str, block: Block) -> list[tuple[tuple[str, int], Clock]]:
    changes = _changes(block, key)
    if len(changes) < 2:
        return []
    step = np.median(changes, axis=0)
    uneven = np.median(np.abs(changes - step), axis=0)
    even = uneven <= (NAMED if NAME.search(key) else EVEN) * step
    title = f"observation {key!r}"
    return [
        ((key, int(i)), Clock(title if len(step) == 1 else f"{title}, entry {i}", float(step[i])))
        for i in np.flatnonzero((step > 0) & even)
    ]


def _take(clock: Clock, changes: np.ndarray, block: Block) -> bool:
    """Whether it is still a clock."""
    if (changes > 0).mean() < FORWARD:
        return False
    far = changes > SKIP * clock.step
    clock.skips.add(block, np.flatnonzero(far), "", True)
    clock.skipped += int(far.sum())
    clock.back.add(block, np.flatnonzero(changes < 0), "", True)
    even = (changes > 0) & ~far & np.isfinite(rates := block.rates[block.step_episodes])
    clock.even += [even.sum(), changes[even].sum(), (1 / rates[even]).sum()]
    return True


def _findings(clock: Clock) -> list[Finding]:
    findings, title = [], f"{clock.title} advances by {clock.step:.4g} a step"
    if clock.back.count:
        what = f"{title}, and goes back in {clock.back.count} episodes: parts of different recordings, or out of order"
        findings.append(Finding("error", "clock goes back", clock.back.first, what, "cut there", clock.back.count))
    if clock.skips.count:
        what = f"{title}, and by more than {SKIP} times that in {clock.skipped} steps of {clock.skips.count} episodes"
        remedy = "frames are missing there: fill them in (resample), or cut the episodes there"
        findings.append(Finding("warning", "clock skips", clock.skips.first, what, remedy, clock.skipped))
    steps, passed, declared = clock.even
    if steps and clock.step != 1:  # that would be a counter
        ratios = [passed / (declared * second) for second in SECOND]
        ratio = min(ratios, key=lambda ratio: abs(np.log(ratio)))
        if abs(ratio - 1) > OFF and 1 / NEAR < ratio < NEAR:
            what = f"{title}, {ratio:.3g} times what the declared {steps / declared:.4g} steps a second make"
            remedy = "declare the true rate, or resample: what is predicted for a second would be of another time"
            findings.append(Finding("warning", "clock off its rate", clock.title, what, remedy, 1))
    return findings
