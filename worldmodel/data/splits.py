"""Which episodes are for training, validation and the test."""

from typing import Literal

import numpy as np

from worldmodel.errors import UserError

Split = Literal["train", "val", "test"]


def split_episodes(episodes: int, val_fraction: float, test_fraction: float, seed: int) -> dict[Split, np.ndarray]:
    """Indices of each split, a function of the arguments alone; at least one for each fraction above 0.

    Raises:
        UserError: if there are too few to split.
    """
    counts = [max(1, round(episodes * fraction)) if fraction > 0 else 0 for fraction in (val_fraction, test_fraction)]
    if episodes - sum(counts) < 1:
        raise UserError(
            f"the dataset holds {episodes} episode{'s' * (episodes > 1)}: too few to split into training,"
            f" {counts[0]} for validation and {counts[1]} for the test; collect more episodes"
            " (--data.test_fraction 0 needs one fewer)"
        )
    order = np.random.default_rng(seed).permutation(episodes)
    val, test, train = np.split(order, np.cumsum(counts))
    return {"train": train, "val": val, "test": test}
