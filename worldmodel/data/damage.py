"""Which episodes of a damaged shard are hurt: `python -m worldmodel.data.damage FILE` prints their numbers as JSON.

A process of its own, since HDF5 may crash on a file whose structure was hit.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.shards import Shard, checksum


def describe_damage(path: Path, episodes: int) -> str:
    """In words, which of the shard's `episodes` episodes are damaged."""
    command = [sys.executable, "-m", "worldmodel.data.damage", str(path)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        hurt: list[int] | None = json.loads(process.stdout) if process.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        hurt = None
    if hurt is None:
        return f"its structure is broken, so that none of its episodes 0 to {episodes - 1} can be read"
    if not hurt:
        return f"the values of its episodes 0 to {episodes - 1} are whole, but not what describes them"
    many = "s" * (len(hurt) > 1)
    return f"episode{many} {', '.join(map(str, hurt[:20]))}{' ...' * (len(hurt) > 20)} of {episodes} cannot be trusted"


def damaged_episodes(path: Path) -> list[int]:
    """The episodes of a shard whose values are not those that were written; a UserError if none can be read."""
    hurt = set()
    with open_hdf5(path) as file:
        shard = Shard(file, path)
        episode_of = np.cumsum(shard.continues == 0) - (shard.continues == 0)  # a long episode has several pieces
        for i in range(len(shard)):
            try:
                whole = checksum(shard.piece(i).episode) == shard.checksums[i]
            except (OSError, RuntimeError):  # fletcher32 or the decompression complains
                whole = False
            if not whole:
                hurt.add(int(episode_of[i]))
    return sorted(hurt)


if __name__ == "__main__":
    print(json.dumps(damaged_episodes(Path(sys.argv[1]))))
