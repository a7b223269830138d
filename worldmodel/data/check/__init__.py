"""Looks for the known faults of recorded datasets. A check is a class in a file of its own, listed in CHECKS."""

from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from worldmodel.data.check.alignment import Alignment
from worldmodel.data.check.block import blocks
from worldmodel.data.check.clocks import Clocks
from worldmodel.data.check.duplicates import Duplicates
from worldmodel.data.check.encoded import Encoded
from worldmodel.data.check.ends import Ends
from worldmodel.data.check.finding import Check, Finding, Recording
from worldmodel.data.check.fragments import Sample
from worldmodel.data.check.frozen import Frozen
from worldmodel.data.check.jumps import Jumps
from worldmodel.data.check.leaks import Leaks
from worldmodel.data.check.rates import Rates
from worldmodel.data.check.units import Units
from worldmodel.data.check.values import Values
from worldmodel.data.episode import Source

# in the order of their findings
CHECKS: list[Callable[[Source], Check]] = [
    *(Encoded, Values, Alignment, Jumps, Ends, Duplicates),
    *(Rates, Clocks, Frozen, Units, Leaks),
]


@threadpool_limits.wrap(limits=1)  # of BLAS: on matrices this small further threads only wait
def check_episodes(
    source: Source, splits: Callable[[int], dict[str, np.ndarray]] | None = None, max_steps: int = 200_000
) -> list[Finding]:
    """Look for the known faults of recorded episodes; errors first.

    The episodes are read once, a few megabytes or a single longer one at a time; except for a few numbers per episode,
    memory is bounded.

    Args:
        source: the dataset.
        splits: gives the indices of the episodes of each split for a number of episodes, as training divides them;
            None: frames that training and validation share are not looked for.
        max_steps: about as many transitions are kept for the checks that fit a model of the dynamics.

    Raises:
        UserError: if an episode cannot be read.
    """
    recording, sample = Recording(source), Sample(source, max_steps)
    checks = [check(source) for check in CHECKS]
    for block in blocks(source):
        recording.names += block.names
        sample.add(block)
        for check in checks:
            check.add(block)
    recording.fragments = sample.fragments()
    if splits is not None and recording.names:
        recording.splits = splits(len(recording.names))
    findings = [finding for check in checks for finding in check.findings(recording)]
    return sorted(findings, key=lambda finding: finding.level != "error")
