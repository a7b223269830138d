"""The true simulator beside the dream: one environment, stepped with the actions that are chosen in the page."""

from io import BytesIO
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from PIL import Image

from worldmodel.agents.trained import Trained, environments
from worldmodel.data import spaces
from worldmodel.envs.play import smaller
from worldmodel.envs.render import is_mujoco, speed_up
from worldmodel.envs.vector import SimulationError
from worldmodel.errors import UserError, reason_of
from worldmodel.page.contents import bounds, encoded
from worldmodel.page.labels import drawing

SIDE = 360  # pixels of a picture's shorter side, at most


class Simulation:
    """An environment that goes on past its time limit, which is no part of its physics.

    Args:
        trained: whose observations are made.
        env_id: of the environment.
        observe: the model's entries or keys; None: as in the collection of its data.

    Raises:
        UserError: if there is no such environment, or it does not fit the model.
    """

    def __init__(self, trained: Trained, env_id: str, observe: list[int] | list[str] | None) -> None:
        self.layout, self.env_id = trained.layout, env_id
        self.drawn = not trained.layout.images and drawing(trained) is None  # by the environment itself
        simulator, self.observed = environments(trained, env_id, 1, observe, film=self.drawn)
        assert isinstance(simulator.envs, SyncVectorEnv)
        self.env, self.rate = simulator.envs.envs[0], simulator.rate
        if self.drawn and is_mujoco(self.env):
            speed_up(self.env, (SIDE, SIDE))
        self.over = False

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin an episode, and return its first frame."""
        self.over = False
        return self._asked(lambda: self.env.reset(seed=seed)[0])

    def step(self, action: list[float]) -> dict[str, Any]:
        """Take an action, as a model sees it (A,), and return the next frame; of an episode that is over the end."""
        if self.over:
            return {"over": True}
        features = np.array([action], np.float32)
        if features.shape[1:] != (self.layout.action_dim,) or not np.isfinite(features).all():
            raise UserError(f"an action has {self.layout.action_dim} finite numbers")
        leaf = self.layout.action_space
        if leaf["type"] == "Box":
            low, high = bounds(leaf)
            features = np.fmin(np.fmax(features, low), high).astype(np.float32)

        def ask() -> Any:
            obs, _, self.over, _, _ = self.env.step(spaces.values(features, leaf)[0])
            return obs

        return self._asked(ask)

    def _asked(self, ask: Any) -> dict[str, Any]:
        """The frame that an answer of the environment shows: vectors, pixels in base64, and a picture if it draws."""
        try:
            frame = self.layout.frames(self.observed(_batched(ask())))[0]
        except SimulationError as error:
            raise UserError(f"{self.env_id}, {error}") from error
        if not np.isfinite(frame).all():
            raise UserError(f"{self.env_id}: its observation is not finite")
        vectors, pixels = frame[: self.layout.vector_dim], frame[self.layout.vector_dim :]
        return {
            "vectors": [float(value) for value in vectors],
            "pixels": encoded(pixels.astype(np.uint8)),
            "over": bool(self.over),
            "picture": self._picture() if self.drawn else None,
        }

    def _picture(self) -> str | None:
        try:
            image = smaller(np.asarray(self.env.render()), SIDE)
            buffer = BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=85)
        except Exception as error:  # drivers and environments raise anything, and a picture is not worth a dream
            print(f"no picture: {reason_of(error)}", flush=True)
            self.drawn = False
            return None
        return f"data:image/jpeg;base64,{encoded(np.frombuffer(buffer.getvalue(), np.uint8))}"


def _batched(observation: Any) -> Any:
    """One observation as a batch of one."""
    if isinstance(observation, dict):
        return {key: _batched(part) for key, part in observation.items()}
    return np.asarray(observation)[None]
