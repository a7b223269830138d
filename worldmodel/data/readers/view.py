"""Which part of every image is kept, and at what size: cropped and resized while an episode is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from worldmodel.data.episode import Episode, Source
from worldmodel.data.spaces import MIN_SIDE, Json, image_shape, images_of
from worldmodel.errors import UserError

Numbers = Sequence[int] | int | str | None  # numbers, or text with commas between them


@dataclass(frozen=True)
class View:
    """A part (top, left, height, width) of each image, scaled to a size (height, width); None: all of it, as it is."""

    part: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return self != View()

    def shape(self, shape: Sequence[int], what: str) -> tuple[int, int, int]:
        """(H, W, C) of an image of shape (H, W, C) as it is seen; a UserError if the part does not lie in it."""
        height, width, channels = shape
        if self.part is not None:
            top, left, *(tall, wide) = self.part
            if top + tall > height or left + wide > width:
                raise UserError(f"{what} is {height} x {width} pixels: image_crop {list(self.part)} goes beyond it")
            height, width = tall, wide
        return (*(self.size or (height, width)), channels)

    def of(self, frame: np.ndarray) -> np.ndarray:
        """A frame (H, W, C) uint8 as it is seen; made smaller, every pixel counts (PIL's bilinear filter)."""
        if self.part is not None:
            top, left, height, width = self.part
            frame = frame[top : top + height, left : left + width]
        if self.size is None or frame.shape[:2] == self.size:
            return frame
        size = self.size[1], self.size[0]
        planes = [frame] if frame.shape[2] == 3 else [frame[..., i] for i in range(frame.shape[2])]
        scaled = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in planes]
        return scaled[0] if frame.shape[2] == 3 else np.stack(scaled, axis=-1)


def view_of(crop: Numbers, size: Numbers) -> View:
    """A view as users write it: `64` or `64,96`, and `top,left,height,width`; a UserError if it is none."""
    part, scaled = _numbers(crop, "image_crop", (4,)), _numbers(size, "image_size", (1, 2))
    if part and (min(part) < 0 or min(part[2:]) < MIN_SIDE):
        raise UserError(f"image_crop is {list(part)}: top and left from 0, height and width at least {MIN_SIDE} pixels")
    if scaled and not MIN_SIDE <= min(scaled) <= max(scaled) <= 4096:
        raise UserError(f"image_size is {list(scaled)}: it must be {MIN_SIDE} to 4096 pixels")
    top_left = (part[0], part[1], part[2], part[3]) if part else None
    return View(top_left, (scaled[0], scaled[-1]) if scaled else None)


def viewed(source: Source, view: View) -> Source:
    """The source with its images seen so, channels last.

    Raises:
        UserError: if there is no image, or the part does not lie in one.
    """
    images = {key: leaf for key, leaf in source.observation_space.items() if image_shape(leaf)}
    if not images:
        raise UserError(f"{source.path} holds no images among {', '.join(source.observation_space)} to crop or resize")

    def episodes() -> Iterator[tuple[str, Episode]]:
        for where, episode in source.episodes():
            seen = {key: np.stack([*map(view.of, images_of(episode.observations[key], images[key]))]) for key in images}
            yield where, replace(episode, observations=episode.observations | seen)

    leaves = {key: _leaf(view, leaf, f"{source.path}: {key}") for key, leaf in images.items()}
    return replace(source, observation_space=source.observation_space | leaves, episodes=episodes)


def _leaf(view: View, leaf: Json, what: str) -> Json:
    shape = image_shape(leaf)
    assert shape is not None, "the leaf is an image"
    return {"type": "Box", "shape": list(view.shape(shape, what)), "dtype": "uint8", "low": 0.0, "high": 255.0}


def _numbers(raw: Numbers, option: str, counts: tuple[int, ...]) -> tuple[int, ...] | None:
    if raw is None:
        return None
    parts = raw.split(",") if isinstance(raw, str) else [raw] if isinstance(raw, int) else raw
    try:
        numbers = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in counts:
        form = "SIDE or HEIGHT,WIDTH" if option == "image_size" else "TOP,LEFT,HEIGHT,WIDTH"
        raise UserError(f"{option} must be {form} in pixels, not {raw!r}")
    return numbers
