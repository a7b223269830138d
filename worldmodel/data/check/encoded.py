"""Pictures that were never decoded: rows of numbers that are JPEG or PNG files."""

import numpy as np

from worldmodel.data.check.block import Block
from worldmodel.data.check.finding import Finding, Places, Recording
from worldmodel.data.episode import Source
from worldmodel.data.readers.pictures import MAGIC

MOST = 0.5  # share of a block's rows that must begin like such files


class Encoded:
    """The check for compressed pictures among the observations."""

    def __init__(self, source: Source) -> None:
        self.found: dict[str, Places] = {}

    def add(self, block: Block) -> None:
        """Take the next episodes."""
        for key, values in block.observations.items():
            rows = values.reshape(len(values), -1)
            if rows.shape[1] < len(MAGIC[1]) or rows.dtype.kind not in "uif":
                continue
            encoded = np.zeros(len(rows), bool)
            for magic in MAGIC:
                begin, unsigned = rows[:, : len(magic)], np.frombuffer(magic, np.uint8)
                encoded |= ((begin == unsigned) | (begin == unsigned.view(np.int8))).all(axis=1)
            if encoded.mean() > MOST:
                self.found.setdefault(key, Places()).add(block, np.flatnonzero(encoded))

    def findings(self, recording: Recording) -> list[Finding]:
        """One for each key."""
        return [
            Finding(
                "error",
                "compressed pictures",
                places.first,
                f"observation {key!r} holds JPEG or PNG files byte by byte, in {places.count} episodes: a model would"
                " take them for vectors",
                "store decoded pictures, uint8 (N, H, W, C), or files as rows of varying length (HDF5), which are"
                f" decoded as they are read; or leave the key out: --skip {key}",
                places.count,
            )
            for key, places in self.found.items()
        ]
