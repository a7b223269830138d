"""An episode in the canonical form, and where episodes come from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.data.spaces import Json

ALIGNMENT = "actions[t] is taken after observations[t] and leads, with rewards[t], to observations[t+1]"


@dataclass(frozen=True)
class Episode:
    """T + 1 observations and the T transitions between them.

    `actions[t]` is taken after `observations[t]` and leads, with `rewards[t]`, to `observations[t + 1]`. The last
    observation is the true final one, not that of a reset. `terminated`: the last transition led to a terminal
    state; `truncated`: the episode was cut by a time limit or by the end of the recording.

    Raises:
        ValueError: if there is no transition, or the lengths are not T + 1, T, T.
    """

    observations: dict[str, np.ndarray]  # key -> (T + 1, ...)
    actions: np.ndarray  # (T, ...)
    rewards: np.ndarray  # (T,)
    terminated: bool
    truncated: bool
    rate: float = float("nan")  # steps a second, if it is known

    def __post_init__(self) -> None:
        lengths = {key: len(values) for key, values in self.observations.items()}
        steps = len(self.rewards)
        if steps < 1:
            raise ValueError("it has no transition")
        if set(lengths.values()) - {steps + 1} or len(self.actions) != steps:
            raise ValueError(
                f"observations {lengths}, {len(self.actions)} actions, {steps} rewards: they must be T+1, T and T"
            )

    def __len__(self) -> int:
        """The number of transitions, T."""
        return len(self.rewards)


@dataclass(frozen=True)
class Source:
    """A dataset of any format, as a stream of canonical episodes.

    `episodes()` reads from the start at each call, one episode after the other, and yields each with its name, which
    tells a person where it stands (`data.h5, episode 3`). It raises UserError where the data is damaged or contradicts
    itself, naming file and episode.
    """

    path: Path
    format: str  # worldmodel, minari, lerobot, npz, d4rl, robomimic, stable-worldmodel, schema
    observation_space: dict[str, Json]  # key -> leaf, see data.spaces
    action_space: Json
    alignment: str  # of the file's rows, in words; what episodes() yields is always the canonical form
    fingerprint: str  # changes when the data changes
    episodes: Callable[[], Iterator[tuple[str, Episode]]]
    provenance: Json = field(default_factory=dict)  # env_id, versions, ... as far as the format tells
