"""Episodes in different units: degrees in some and radians in others, metres and millimetres."""

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Recording
from worldmodel.data.check.rates import two_groups
from worldmodel.data.episode import Source
from worldmodel.data.spaces import image_shape

UNITS = {180 / np.pi: "degrees and radians", 100.0: "centimetres and metres", 1000.0: "millimetres and metres"}
NEAR = 1.35  # ratio up to which a factor is taken for one of these
AGREE = 1.3  # likewise of the factors of the spread and of the change per step
MOST = 20_000  # episodes looked at
STEPS, WIDEST = 5, 256  # steps that an episode must have to be judged; entries of a key that are looked at


class Units:
    """The check for one unit throughout, over a stream of episodes."""

    def __init__(self, source: Source) -> None:
        leaves = {**source.observation_space, "": source.action_space}  # "": the actions
        self.keys = [key for key, leaf in leaves.items() if leaf["type"] == "Box" and image_shape(leaf) is None]
        self.scales: dict[str, list[np.ndarray]] = {}  # key -> (E, 2, n): log spread, log change per step
        self.episodes: dict[str, list[np.ndarray]] = {}
        self.seen = 0

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        self.seen += len(block.names)
        if self.seen > MOST and self.scales:
            return
        for key in self.keys:
            values = block.actions if key == "" else block.observations.get(key)
            if values is None:
                continue
            starts, lengths = (block.steps, block.lengths) if key == "" else (block.starts, block.lengths + 1)
            rows = values.reshape(len(values), -1)[:, :WIDEST].astype(np.float64)
            change = np.diff(rows, axis=0, append=rows[-1:])
            change[starts + lengths - 1] = 0
            count = lengths[:, None]
            mean, square, moved = (np.add.reduceat(part, starts) / count for part in (rows, rows**2, change**2))
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = np.log(np.stack([square - mean**2, moved], axis=1)) / 2
            judged = np.flatnonzero(block.lengths >= STEPS)
            self.scales.setdefault(key, []).append(scale[judged])
            self.episodes.setdefault(key, []).append(block.first + judged)

    def findings(self, recording: Recording) -> list[Finding]:
        """One for each key, or for the actions."""
        findings = []
        for key, parts in self.scales.items():
            scales, episodes = np.concatenate(parts), np.concatenate(self.episodes[key])
            mixed = [(i, *found) for i in range(scales.shape[2]) if (found := _mixed(scales[:, :, i]))]
            if not mixed:
                continue
            entry, ratio, few, units = mixed[0]
            which = ", ".join(str(one[0]) for one in mixed[:8])
            what = f"observation {key!r}" if key else "actions"
            what += f", entry {which}: in {len(few)} of {len(scales)} episodes it spreads and changes about {ratio:.3g}"
            what += f" times as much, or as little, as in the others: {units}?"
            where = f"{recording.names[episodes[few[0]]]}, step 0"
            findings.append(Finding("warning", "mixed units", where, what, "convert all to one unit", len(few)))
        return findings


def _mixed(logs: np.ndarray) -> tuple[float, np.ndarray, str] | None:
    """(ratio, the rarer rows, units) if the rows (E, 2) form two groups whose ratio is that of two units."""
    usable = np.flatnonzero(np.isfinite(logs).all(axis=1))
    groups = two_groups(logs[usable].mean(axis=1)) if len(usable) > 1 else None
    if groups is None:
        return None
    upper = groups[1]
    spread, change = np.exp(logs[usable][upper].mean(axis=0) - logs[usable][~upper].mean(axis=0))
    named = [units for factor, units in UNITS.items() if 1 / NEAR < groups[0] / factor < NEAR]
    if not named or not 1 / AGREE < spread / change < AGREE:
        return None
    return groups[0], usable[upper if 2 * upper.sum() <= len(upper) else ~upper], " or ".join(named)
