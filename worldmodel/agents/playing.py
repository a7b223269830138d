"""A film of the first environment while episodes are played."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from PIL import Image

from worldmodel.envs.render import area_average
from worldmodel.envs.vector import reason_of

OnStep = Callable[[np.ndarray], None]


class Film:
    """Frames of the first environment; it must have been made with render_mode rgb_array.

    Args:
        envs: in this process.
        side: the shorter one, in pixels, at most.
        most: frames; of more steps every second one is kept, then every fourth, ...
    """

    def __init__(self, envs: VectorEnv, side: int = 200, most: int = 250) -> None:
        assert isinstance(envs, SyncVectorEnv)
        self.env, self.side, self.most = envs.envs[0], side, most
        self.frames: list[np.ndarray] = []
        self.every, self.step, self.problem = 1, 0, ""

    def on_step(self, counted: np.ndarray) -> None:
        """Take a frame, where the first environment still plays. What keeps it from rendering is told once."""
        if not counted[0] or self.problem:
            return
        if self.step % self.every == 0:
            try:
                self.frames.append(_smaller(np.asarray(self.env.render()), self.side))
            except Exception as error:  # drivers and environments raise anything, and a film is not worth a run
                self.problem = reason_of(error)
        self.step += 1
        if len(self.frames) > self.most:
            self.frames, self.every = self.frames[::2], 2 * self.every

    def save(self, path: Path) -> None:
        """As a GIF of 25 frames a second."""
        first, *others = [Image.fromarray(frame).quantize(64) for frame in self.frames]
        first.save(path, save_all=True, append_images=others, duration=40, loop=0)


def _smaller(frame: np.ndarray, side: int) -> np.ndarray:
    by = side / min(frame.shape[:2])
    return frame if by >= 1 else area_average(frame, *(round(by * size) for size in frame.shape[:2]))
