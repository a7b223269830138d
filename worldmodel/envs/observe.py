"""What is used of the environments' observations: the part that is recorded, and the vectors that a policy sees."""

from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import OBSERVATION, Json, describe, describe_observation, leaves_of
from worldmodel.envs.render import FRAME, OWN
from worldmodel.envs.wrappers import MASK, num_choices
from worldmodel.errors import UserError

IMAGE = "image"  # the recorded frame's key


class Observed:
    """Picks the recorded part of a batch of observations.

    Args:
        space: of one environment; of `Pixels` if `pixels`.
        observe: entries of a vector observation, or keys of a Dict (`robot` includes `robot/arm`); None: all of it, or
            with `pixels` only the frame.
        pixels: record the frame, as `image`.
        keep_state: with `pixels`, also record the whole observation.

    Raises:
        UserError: if an entry or key does not exist, or two observations would have one key.
    """

    def __init__(
        self, space: spaces.Space, observe: list[int] | list[str] | None, pixels: bool = False, keep_state: bool = False
    ) -> None:
        self.pixels = pixels
        own = space.spaces[OWN] if isinstance(space, spaces.Dict) and pixels else space
        self.entries: list[int] | None = None
        self.space: dict[str, Json] = {}  # of what is recorded, key -> leaf
        if observe is not None:
            self._pick(own, observe)
        elif keep_state or not pixels:
            self.space = describe_observation(own)
        self.keys = list(self.space)
        if pixels:
            assert isinstance(space, spaces.Dict)
            if IMAGE in self.space:
                raise UserError(
                    f"the observation has a key {IMAGE!r}, which --pixels would hide: leave out --pixels to record it,"
                    " or name the other keys with --observe"
                )
            self.space = {IMAGE: describe(space[FRAME]), **self.space}

    def own(self, batch: Any) -> Any:
        """The environments' own observations, without frames: what a policy sees."""
        return batch[OWN] if self.pixels else batch

    def __call__(self, batch: Any) -> dict[str, np.ndarray]:
        """Key -> (N, ...) of what is recorded, for N environments."""
        values: dict[str, np.ndarray] = {IMAGE: batch[FRAME]} if self.pixels else {}
        if self.keys:
            leaves = leaves_of(self.own(batch))
            values |= {key: leaves[key] for key in self.keys}
        if self.entries is not None:
            values[OBSERVATION] = values[OBSERVATION][:, self.entries]
        return values

    def _pick(self, own: spaces.Space, observe: list[int] | list[str]) -> None:
        entries = [item for item in observe if isinstance(item, int)]
        if entries and len(entries) == len(observe):
            self.entries, self.space = entries, {OBSERVATION: describe(_entries_of(own, entries))}
            return
        leaves = describe_observation(own)
        for item in map(str, observe):
            chosen = [key for key in leaves if key == item or key.startswith(f"{item}/")]
            if not chosen:
                raise UserError(f"--observe {_listed(observe)}: the observation has no key {item!r}: {_keys(leaves)}")
            self.space |= {key: leaves[key] for key in chosen}
        if not self.space:
            raise UserError(f"--observe is empty: {_keys(leaves)}; leave it out to record all")


class ObservationVectors:
    """The observations of all environments as one array, laid out as in a dataset, and the action masks.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        observe: entries of a vector, or keys of a Dict, to use; None: all. An `action_mask` is not an observation.

    Raises:
        UserError: if there are no such entries or keys, or a mask does not fit the actions.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, observe: list[int] | list[str] | None
    ) -> None:
        self.masked = isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces
        self._unpacks = False  # it is a Dict only because of the mask
        if isinstance(observation_space, spaces.Dict) and self.masked:
            rest = {key: space for key, space in observation_space.spaces.items() if key != MASK}
            size, wanted = int(np.prod(observation_space[MASK].shape or (0,))), num_choices(action_space)
            if size != wanted:
                raise UserError(f"the observation's {MASK} has {size} entries, and there are {wanted} actions to mask")
            self._unpacks = list(rest) == [OBSERVATION]
            observation_space = rest[OBSERVATION] if self._unpacks else spaces.Dict(rest)
        self.observed = Observed(observation_space, observe)
        self.layout = Layout(self.observed.space, describe(action_space))

    def __call__(self, batch: Any) -> np.ndarray:
        """(N, O) float32, see Layout.frames."""
        return self.layout.frames(self.observed(batch[OBSERVATION] if self._unpacks else batch))

    def mask(self, batch: Any) -> np.ndarray | None:
        """(N, P) bool, the valid choices; None without masks."""
        return batch[MASK].reshape(len(batch[MASK]), -1).astype(bool) if self.masked else None


def _entries_of(space: spaces.Space, entries: list[int]) -> spaces.Box:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        what = f"is {space}"
        if isinstance(space, spaces.Dict):
            what = f"has the keys {', '.join(describe_observation(space))}"
        raise UserError(f"--observe {_listed(entries)}: numbers pick entries of a vector observation; this one {what}")
    if not all(0 <= i < space.shape[0] for i in entries):
        raise UserError(f"--observe {_listed(entries)}: the observation has entries 0 to {space.shape[0] - 1}")
    return spaces.Box(space.low[entries], space.high[entries], dtype=np.dtype(space.dtype).type)


def _listed(observe: list[int] | list[str]) -> str:
    return ",".join(map(str, observe))


def _keys(leaves: dict[str, Json]) -> str:
    return f"its keys are {', '.join(leaves)}"
