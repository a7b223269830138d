"""Episodes that hold a NaN or an infinity: an error, or left out."""

import logging
from pathlib import Path
from typing import Literal

from worldmodel.data.episodes import Episodes
from worldmodel.data.load import Loaded
from worldmodel.errors import UserError

NonFinite = Literal["error", "skip"]
log = logging.getLogger(__name__)


def only_finite(loaded: Loaded, path: Path, non_finite: NonFinite) -> Episodes:
    """The episodes of the dataset at `path` without those that are not finite, if that is what the user wants.

    Raises:
        UserError: naming the first such value, if `non_finite` is `error`, or nothing else is there.
    """
    episodes, bad = loaded.episodes, loaded.not_finite
    if not bad:
        return episodes
    if non_finite == "error":
        i, (field, step) = next(iter(bad.items()))
        raise UserError(
            f"{path}: {episodes.names[i]}, step {step}: the {field} is not finite"
            f" ({len(bad)} of {len(episodes)} episodes have such values); mend the data,"
            " or leave such episodes out with --data.non_finite skip"
        )
    if len(bad) == len(episodes):
        raise UserError(f"{path}: every episode holds a NaN or an infinity; mend the data")
    log.warning("%s: left out %d episodes that hold a NaN or an infinity", path, len(bad))
    return episodes.select(i for i in range(len(episodes)) if i not in bad)
