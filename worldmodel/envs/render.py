"""Rendered frames as observations: without a screen, and fast enough to record.

MuJoCo spends its time on shadows, multisampling and reflections. Without them a 64x64 frame of HalfCheetah takes
about 1 ms on one core instead of 50, and shows the same motion.
"""

import os
import subprocess
import sys
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from worldmodel.data.spaces import MIN_SIDE, describe, image_shape, images_of
from worldmodel.errors import UserError

FRAME, OWN = "frame", "own"  # keys of the observation that `Pixels` makes
BLANK = 16  # this many blank frames from the start mean a broken renderer
BLACK = 8  # brightness, of 255, below which a pixel is black
GL_HINT = "apt-get install libegl1 libgl1-mesa-dri, or set MUJOCO_GL=osmesa where libosmesa6 is installed"


def frame_size(pixels: int | list[int] | None) -> tuple[int, int] | None:
    """(H, W) of the option `pixels`: a number or two.

    Raises:
        UserError: for anything else, and for sizes that no network here supports.
    """
    if pixels is None:
        return None
    sides = [pixels, pixels] if isinstance(pixels, int) else list(pixels)
    if len(sides) != 2 or not all(isinstance(side, int) and MIN_SIDE <= side <= 1024 for side in sides):
        raise UserError(f"--pixels {pixels}: give one side or height,width, each from {MIN_SIDE} to 1024")
    return sides[0], sides[1]


def has_own_image(env: gym.Env) -> bool:
    """Whether the observation is already an image, which needs no rendering."""
    return isinstance(env.observation_space, spaces.Box) and image_shape(describe(env.observation_space)) is not None


def is_mujoco(env: gym.Env) -> bool:
    """Whether it renders with Gymnasium's MuJoCo renderer."""
    return hasattr(env.unwrapped, "mujoco_renderer")


def prepare_display() -> None:
    """Let pygame draw without a screen where there is none. Call it before pygame is imported."""
    if _no_screen():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def prepare_mujoco() -> str:
    """Choose MuJoCo's backend where there is no screen. Call it before mujoco is imported, which reads MUJOCO_GL.

    Returns why no backend works; empty if one does, or if the user has chosen one.
    """
    if "MUJOCO_GL" in os.environ or not _no_screen():
        return ""
    failures = []
    for backend in ("egl", "osmesa"):
        failure = _failure_of(backend)
        if not failure:
            os.environ["MUJOCO_GL"] = backend
            return ""
        failures.append(f"{backend}: {failure}")
    return f"MuJoCo cannot render without a screen here ({'; '.join(failures)}): {GL_HINT}"


def may_fork() -> bool:
    """Whether a forked process can use MuJoCo's renderer: no if this one has, as a fork loses the driver's threads."""
    return os.getpid() not in _has_drawn


class Pixels(gym.Wrapper):
    """Makes each observation a dict: `frame`, an image (H, W, C) uint8, and `own`, the environment's observation.

    The frame is rendered, or is the environment's own image, and is area-averaged to H x W. MuJoCo renders at H x W.

    Args:
        size: H, W.
        native: render at the size that the environment was made with, and average down.

    Raises:
        UserError: in reset and step, if it cannot be rendered, or the first frames are all blank.
    """

    def __init__(self, env: gym.Env, size: tuple[int, int], native: bool = False) -> None:
        super().__init__(env)
        self.size = size
        own = env.observation_space
        self.own_image = image_shape(describe(own)) if has_own_image(env) else None
        channels = self.own_image[2] if self.own_image else 3
        self.observation_space = spaces.Dict({FRAME: spaces.Box(0, 255, (*size, channels), np.uint8), OWN: own})
        self.native: list[int] = []  # H, W before averaging, known after the first frame
        self.blank = 0  # number of frames while all are blank; then -1
        if self.own_image is None and is_mujoco(env):
            speed_up(env, None if native else size)

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        own, info = self.env.reset(**kwargs)
        return {FRAME: self._frame(own), OWN: own}, info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        own, reward, terminated, truncated, info = self.env.step(action)
        return {FRAME: self._frame(own), OWN: own}, reward, terminated, truncated, info

    @property
    def render_settings(self) -> dict[str, Any]:
        """How frames are rendered, for the manifest; known after the first frame."""
        settings: dict[str, Any] = {"size": list(self.size), "rendered_at": self.native}
        if self.own_image is not None:
            return settings | {"by": "the environment's own observation"}
        if not is_mujoco(self.env):
            pygame = {"pygame": sys.modules["pygame"].__version__} if "pygame" in sys.modules else {}
            return settings | {"by": type(self.env.unwrapped).__module__, **pygame}
        viewer, quality = _viewer(self.env), _viewer(self.env).model.vis.quality
        backend = {"by": "mujoco", "backend": viewer.backend, "device": _gl_device()}
        reflectance = float(viewer.model.mat_reflectance.max(initial=0))
        sizes = {"shadowsize": int(quality.shadowsize), "offsamples": int(quality.offsamples)}
        return settings | backend | sizes | {"mat_reflectance": reflectance}

    def _frame(self, own: Any) -> np.ndarray:
        if self.own_image is not None:
            frame = images_of(np.asarray(own)[None], describe(self.env.observation_space))[0]
        else:
            frame = self._rendered()
        self.native = list(frame.shape[:2])
        return area_average(frame, *self.size)

    def _rendered(self) -> np.ndarray:
        name = getattr(self.spec, "id", type(self.env.unwrapped).__name__)
        try:
            if is_mujoco(self.env) and (viewer := _viewer(self.env)):
                viewer.make_context_current()  # another environment of this process may have made its own current
            frame: Any = self.env.render()
            if is_mujoco(self.env):
                _has_drawn.add(os.getpid())
        except Exception as error:  # drivers and environments raise anything
            hint = f": {GL_HINT}" if is_mujoco(self.env) else ""
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(f"{name} cannot be rendered ({reason}){hint}") from error
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise UserError(f"{name}: render() gave {got}; it must give uint8 (height, width, 3)")
        self._check_blank(frame, name)
        return frame

    def _check_blank(self, frame: np.ndarray, name: str) -> None:
        if self.blank < 0:
            return
        self.blank = self.blank + 1 if frame.max() < BLACK or (frame == frame[0, 0]).all() else -1
        if self.blank == BLANK:
            colour = "black" if frame.max() < BLACK else "empty"
            backend = f" (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')})" * is_mujoco(self.env)
            raise UserError(
                f"{name}: the renderer gives {colour} frames{backend}: the first {BLANK} are blank; update the"
                " graphics driver, try MUJOCO_GL=egl or osmesa, or point the camera elsewhere with --env_kwargs"
            )


def area_average(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A uint8 image (H, W, C) as (height, width, C): each new pixel is the mean of the area it covers."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    if frame.shape[2] == 3:
        planes = Image.fromarray(np.ascontiguousarray(frame))
        return np.asarray(planes.resize((width, height), Image.Resampling.BOX))
    channels = [Image.fromarray(np.ascontiguousarray(frame[..., c])) for c in range(frame.shape[2])]
    return np.stack([np.asarray(c.resize((width, height), Image.Resampling.BOX)) for c in channels], axis=-1)


def speed_up(env: gym.Env, size: tuple[int, int] | None) -> None:
    """Turn expensive effects off. Call it before the first frame, when MuJoCo copies the settings into its context."""
    inner: Any = env.unwrapped
    model, renderer = inner.model, inner.mujoco_renderer
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.mat_reflectance[:] = 0
    if size:
        renderer.height, renderer.width = size
        model.vis.global_.offheight, model.vis.global_.offwidth = size
    if config := renderer.default_cam_config:  # JSON and YAML give lists, the camera takes arrays
        renderer.default_cam_config = {k: np.array(v, float) if isinstance(v, list) else v for k, v in config.items()}


def _no_screen() -> bool:
    return sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _viewer(env: gym.Env) -> Any:
    inner: Any = env.unwrapped
    return inner.mujoco_renderer.viewer


_has_drawn: set[int] = set()  # ids of processes that used MuJoCo's renderer


@cache
def _failure_of(backend: str) -> str:
    """Why a MuJoCo backend does not work; empty if it does. Tried in a new process: PyOpenGL can choose only once."""
    code = f"from mujoco.{backend} import GLContext; GLContext(64, 64).make_current()"
    environment = {**os.environ, "MUJOCO_GL": backend}
    command = [sys.executable, "-P", "-c", code]  # -P: nothing of the folder it starts in
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    if process.returncode == 0:
        return ""
    return (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1][:200]


def _gl_device() -> str:
    """The renderer, such as `llvmpipe (LLVM 15.0.6, 256 bits)`; frames may differ between devices."""
    try:
        from OpenGL import GL

        name: Any = GL.glGetString(GL.GL_RENDERER)
        return name.decode(errors="replace")
    except Exception:  # no PyOpenGL under glfw, or a driver that does not say: only the manifest lacks it
        return "unknown"
