"""What a verdict consists of."""

from dataclasses import dataclass

from worldmodel.comparison.results import Loop
from worldmodel.comparison.statistics import Estimate


@dataclass(frozen=True)
class Cell:
    """A variant's error at a horizon, over its seeds."""

    variant: str
    loop: Loop
    horizon: int  # steps
    error: Estimate  # / variance; geometric
    regret: Estimate | None  # error / the floor's error, where there is a floor


@dataclass(frozen=True)
class Pair:
    """Two variants against each other, seed by seed."""

    loop: Loop
    horizon: int
    a: str
    b: str
    ratio: float  # error_a / error_b, geometric mean over the seeds in which neither diverged
    low: float  # its 95% interval, of this one ratio
    high: float
    p: float  # see Verdict.method, corrected; NaN: the seeds allow no test
    better: str | None  # a, b, or not told apart
    alone: str | None  # the same, were this the only pair


@dataclass(frozen=True)
class Ranking:
    """Who wins at a horizon."""

    loop: Loop
    horizon: int
    winner: str | None
    best: list[str]  # the winner; without one, the lowest and those that it does not beat; none of them diverged
    statement: str


@dataclass(frozen=True)
class Trait:
    """Something of a variant that has no horizon; `diverged`, `failed` and `finished` are counts of runs."""

    variant: str
    name: str
    estimate: Estimate


@dataclass(frozen=True)
class Verdict:
    """What the runs of a comparison say, and what they do not."""

    horizons: list[int]  # steps; those that at least one run reached
    cells: list[Cell]
    pairs: list[Pair]
    rankings: list[Ranking]
    traits: list[Trait]
    summary: list[str]  # sentences, the most important first
    method: str

    def cell(self, variant: str, loop: Loop, horizon: int) -> Cell | None:
        """The variant's cell; None if no run of it reached this horizon."""
        same = (c for c in self.cells if (c.variant, c.loop, c.horizon) == (variant, loop, horizon))
        return next(same, None)

    def ranking(self, loop: Loop, horizon: int) -> Ranking | None:
        """The ranking there, if anything was measured there."""
        return next((r for r in self.rankings if (r.loop, r.horizon) == (loop, horizon)), None)

    def trait(self, variant: str, name: str) -> Estimate | None:
        """The estimate of a trait."""
        return next((t.estimate for t in self.traits if (t.variant, t.name) == (variant, name)), None)
