"""What a check found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fault of a dataset, and what to do about it."""

    level: Literal["error", "warning"]
    check: str  # the kind of fault, in a few words
    where: str  # the first place: file, episode, step, as the episode's name tells them
    what: str
    remedy: str
    count: int  # of the episodes, entries or pairs concerned, as `what` says
