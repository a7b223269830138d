"""Which part of the observations is recorded."""

from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.data.spaces import OBSERVATION, Json, describe, describe_observation, leaves_of
from worldmodel.envs.render import FRAME, OWN
from worldmodel.errors import UserError

IMAGE = "image"  # the recorded frame's key


class Observed:
    """Picks what is recorded out of a batch of observations.

    Args:
        space: of one environment; of `Pixels` if `pixels`.
        observe: entries of a vector observation, or keys of a Dict (`robot` stands for `robot/arm` too); None: all of
            it, or with `pixels` nothing beside the frame.
        pixels: record the frame, as `image`.
        keep_state: with `pixels`, record all of the observation beside the frame.

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
                    f"the observation has a key {IMAGE!r}, which --pixels would hide: leave --pixels out to record its"
                    " own, or name the other keys with --observe"
                )
            self.space = {IMAGE: describe(space[FRAME]), **self.space}

    def own(self, batch: Any) -> Any:
        """What the environments themselves gave, without frames: what a policy sees."""
        return batch[OWN] if self.pixels else batch

    def __call__(self, batch: Any) -> dict[str, np.ndarray]:
        """Key -> (N, ...) of what is recorded, for N environments."""
        found: dict[str, np.ndarray] = {IMAGE: batch[FRAME]} if self.pixels else {}
        if self.keys:
            leaves = leaves_of(self.own(batch))
            found |= {key: leaves[key] for key in self.keys}
        if self.entries is not None:
            found[OBSERVATION] = found[OBSERVATION][:, self.entries]
        return found

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
            raise UserError(f"--observe names nothing: {_keys(leaves)}; leave it out to record all")


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
