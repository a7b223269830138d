"""All checks of a dataset, in one pass over its episodes."""

from collections.abc import Callable

import numpy as np

from worldmodel.data.check.alignment import alignment_findings
from worldmodel.data.check.duplicates import Duplicates
from worldmodel.data.check.ends import Ends
from worldmodel.data.check.finding import Finding
from worldmodel.data.check.rates import Rates, rate_findings
from worldmodel.data.check.sample import Sample
from worldmodel.data.check.values import Values
from worldmodel.data.episode import Source

Splits = Callable[[int], dict[str, np.ndarray]]

__all__ = ["Finding", "check_episodes"]


def check_episodes(source: Source, splits: Splits | None = None, max_steps: int = 200_000) -> list[Finding]:
    """Look for the known faults of recorded episodes; errors first.

    The episodes are read once, one at a time. What is kept of them is bounded, except for a few numbers an episode.
    `splits(E)` gives the indices of the episodes of each split, as training makes them; without it, frames that
    training and validation share are not looked for. At most about `max_steps` transitions are kept for the checks
    that fit a model of the dynamics (alignment, sampling rate).

    Raises:
        UserError: where an episode cannot be read, or there is none.
    """
    sample = Sample(source, max_steps)
    values, ends, duplicates, rates = Values(source), Ends(), Duplicates(), Rates()
    names: list[str] = []
    for index, (name, episode) in enumerate(source.episodes()):
        names.append(name)
        values.add(name, episode)
        ends.add(name, episode)
        duplicates.add(name, episode)
        rates.add(name, episode)
        sample.add(index, episode)
    divided = splits(len(names)) if splits is not None and names else {}
    found = [
        *values.findings(),
        *alignment_findings(source, sample),
        *ends.findings(),
        *duplicates.findings(divided),
        *rates.findings(),
        *(rate_findings(sample, names) if not rates.known else []),
    ]
    return sorted(found, key=lambda finding: finding.level != "error")
