"""What a policy's network sees of the environments' observations."""

from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import OBSERVATION, describe, features, images_of
from worldmodel.envs.masks import MASK, num_choices
from worldmodel.envs.observe import Observed
from worldmodel.errors import UserError


class AsVectors:
    """Observations of all environments as one float array, laid out as in a dataset, and the masks beside them.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        observe: entries of a vector, or keys of a Dict, that are seen; None: all. An `action_mask` is no observation.

    Raises:
        UserError: if there are no such entries or keys, or a mask does not fit the actions.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, observe: list[int] | list[str] | None
    ) -> None:
        self.masked = isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces
        self._unpacks = False  # a mask alone made it a Dict
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
        """(N, O) float32: vectors, then pixels from 0 to 255."""
        leaves = self.observed(batch[OBSERVATION] if self._unpacks else batch)
        parts = [features(leaves[key], self.layout.observation_space[key]) for key in self.layout.vectors]
        for key in self.layout.images:
            pixels = images_of(leaves[key], self.layout.observation_space[key])
            parts.append(pixels.reshape(len(pixels), -1).astype(np.float32))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def mask(self, batch: Any) -> np.ndarray | None:
        """(N, P) bool, the valid choices; None where nobody tells."""
        return batch[MASK].reshape(len(batch[MASK]), -1).astype(bool) if self.masked else None
