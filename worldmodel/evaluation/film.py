"""Rollouts of images, to be looked at: truth, prediction and their difference, as an animation and as a film strip."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from worldmodel.evaluation.rollouts import Example

GAP = 4  # pixels between two pictures


def image_of(example: Example, rows: np.ndarray, key: str) -> np.ndarray:
    """The images (N, H, W, 3) uint8 of one key in observations (N, O); what runs out of the range is clipped."""
    left = example.layout.vector_dim
    for name, shape in example.layout.images.items():
        size = int(np.prod(shape))
        if name == key:
            pixels = np.nan_to_num(rows[:, left : left + size], nan=0, posinf=255, neginf=0)
            images = pixels.clip(0, 255).round().astype(np.uint8).reshape(len(rows), *shape)
            return images.repeat(3, axis=-1) if shape[2] == 1 else images[..., :3] if shape[2] >= 3 else _third(images)
        left += size
    raise KeyError(key)


def _third(images: np.ndarray) -> np.ndarray:
    """Two channels as red and green."""
    return np.concatenate([images, np.zeros_like(images[..., :1])], axis=-1)


def difference(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Grey (127) where both agree, brighter where the prediction is, darker where the truth is: uint8."""
    return ((prediction.astype(np.int16) - truth + 255) // 2).astype(np.uint8)


def save_animation(examples: list[Example], path: Path, steps: int, side: int = 128, max_frames: int = 200) -> None:
    """Write a GIF: a row an example, with truth, prediction, difference; the caption counts the unseen steps.

    Args:
        examples: of a model with images; the first image key is shown.
        path: of the file.
        steps: T, the trained horizon: the caption says when it is passed.
        side: pixels of a picture's shorter side, at least.
        max_frames: of the animation.
    """
    key = next(iter(examples[0].layout.images))
    shown = min(max(len(example.prediction) for example in examples), max_frames)
    films = []
    for example in examples:
        truth, prediction = image_of(example, example.truth, key)[1:], image_of(example, example.prediction, key)
        films.append((truth, prediction, difference(truth, prediction)))
    height, width = films[0][0].shape[1:3]
    zoom = max(1, -(-side // min(height, width)))
    frames = [_frame([[part[min(t, len(part) - 1)] for part in film] for film in films], zoom) for t in range(shown)]
    for t, frame in enumerate(frames):
        caption = f"truth | model, open loop | difference     step {t + 1}" + (
            " (beyond the trained horizon)" * (t >= steps)
        )
        ImageDraw.Draw(frame).text((GAP, frame.height - 16), caption, fill="white")
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)


def _frame(rows: list[list[np.ndarray]], zoom: int) -> Image.Image:
    height, width = (zoom * size + GAP for size in rows[0][0].shape[:2])
    canvas = Image.new("RGB", (width * len(rows[0]) + GAP, height * len(rows) + GAP + 18))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            big = Image.fromarray(picture).resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
            canvas.paste(big, (GAP + j * width, GAP + i * height))
    return canvas


def draw_film(axes: Axes, example: Example, columns: int = 8) -> None:
    """A strip of the first image key into `axes`: truth, prediction, difference, some steps ahead."""
    key = next(iter(example.layout.images))
    length = len(example.prediction)
    ahead = np.unique(np.geomspace(1, length, columns).round().astype(int))
    truth, prediction = (
        image_of(example, example.truth[ahead], key),
        image_of(example, example.prediction[ahead - 1], key),
    )
    height, width = truth.shape[1:3]
    lines = [np.concatenate(list(part), axis=1) for part in (truth, prediction, difference(truth, prediction))]
    axes.imshow(np.concatenate(lines), interpolation="nearest")
    axes.set_xticks(width * (np.arange(len(ahead)) + 0.5), [f"+{t}" for t in ahead])
    axes.set_yticks(height * (np.arange(3) + 0.5), ["truth", "model", "difference"])
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(example.name, fontsize=9)
    for edge in range(1, 3):
        axes.axhline(edge * height - 0.5, color="white", linewidth=1.5)
    for edge in range(1, len(ahead)):
        axes.axvline(edge * width - 0.5, color="white", linewidth=1.5)
