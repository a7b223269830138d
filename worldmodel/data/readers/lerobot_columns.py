"""Columns of a LeRobotDataset as arrays: numbers and images from Parquet files, frames from MP4 files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.readers.parquet import need
from worldmodel.data.readers.pictures import decoded
from worldmodel.data.readers.view import View
from worldmodel.errors import UserError

FORMATS = {1: "gray", 3: "rgb24"}  # FFmpeg's names of 1 and 3 channels


@dataclass(frozen=True)
class Feature:
    name: str  # in info.json and in the files
    kind: str  # array, image (in Parquet) or video (in MP4)
    shape: tuple[int, ...]  # of one row; (H, W, C) for images and videos
    dtype: str

    @property
    def is_image(self) -> bool:
        return self.kind != "array"


@dataclass(frozen=True)
class Clip:
    """Where the frames of one episode lie in an MP4 file."""

    path: Path
    start: float  # seconds, of the episode's first frame
    end: float  # seconds, from which on frames may be the next episode's


def values_of(column: Any, feature: Feature, where: str, view: View | None = None) -> np.ndarray:
    """A column of N rows as an array (N, *shape), of images what the view shows."""
    if feature.kind == "image":
        return _images(column, feature, where, view or View())
    pa, pc = need("pyarrow"), need("pyarrow.compute")
    values, sizes, name = column.combine_chunks(), [], feature.name
    where = f"{where}: the column {name!r}"
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise UserError(f"{where} has rows of {lengths} numbers; each must have the shape {list(feature.shape)}")
        sizes += lengths
        values = values.flatten()
    if values.null_count:
        raise UserError(f"{where} has rows without a value")
    numbers = values.to_numpy(zero_copy_only=False)
    if len(column) and tuple(sizes) != feature.shape and (sizes or math.prod(feature.shape) != 1):
        raise UserError(f"{where} has rows of the shape {sizes}; meta/info.json says {list(feature.shape)}")
    if not np.can_cast(numbers.dtype, feature.dtype, "same_kind"):
        raise UserError(f"{where} holds {numbers.dtype}; meta/info.json says {feature.dtype}")
    return numbers.astype(feature.dtype).reshape(len(column), *feature.shape)


def _images(column: Any, feature: Feature, where: str, view: View) -> np.ndarray:
    """A column of N images, PNG or JPEG, as (N, H, W, C). Their `bytes` are read, their `path` never is."""
    frames = np.empty((0, *feature.shape), np.uint8)
    for t, cell in enumerate(column):
        stored = cell.as_py()
        data = stored.get("bytes") if isinstance(stored, dict) else stored
        spot = f"{where}, step {t}: the image {feature.name!r}"
        if not isinstance(data, bytes):
            raise UserError(f"{spot} is not in the Parquet file (files that it names are not read)")
        frame = view.of(decoded(data, feature.shape, spot))
        frames = frames if len(frames) else np.empty((len(column), *frame.shape), np.uint8)
        frames[t] = frame
    return frames


def frames_of(clip: Clip, rows: int, fps: float, feature: Feature, where: str, view: View) -> np.ndarray:
    """What the view shows of the frames nearest to clip.start + row / fps, (rows, H, W, C).

    No frame is of another episode, and none is used twice.
    """
    av = need("av", "lerobot")
    frames, offsets = np.empty((0, *feature.shape), np.uint8), np.full(rows, math.inf)
    try:
        # the format is fixed, since FFmpeg might guess one that makes it open other files
        with clip.path.open("rb") as file, av.open(file, format="mp4", metadata_errors="ignore") as container:
            for frame in _decoded(container, clip.start, where):
                row = round((frame.time - clip.start) * fps)
                if row >= rows or frame.time > clip.end - 0.5 / fps:
                    break
                offset = abs(frame.time - clip.start - row / fps)
                if row < 0 or offset >= offsets[row]:
                    continue
                if (frame.height, frame.width) != feature.shape[:2]:
                    size, expected = f"{frame.height} x {frame.width}", f"{feature.shape[0]} x {feature.shape[1]}"
                    raise UserError(f"{where}: its frames are of {size} pixels; meta/info.json says {expected}")
                seen = view.of(frame.to_ndarray(format=FORMATS[feature.shape[2]]).reshape(feature.shape))
                frames = frames if len(frames) else np.empty((rows, *seen.shape), np.uint8)
                frames[row] = seen
                offsets[row] = offset
    except av.error.FFmpegError as error:
        raise UserError(f"{where}: it cannot be decoded: it is damaged, or no MP4 ({error.strerror})") from error
    if missing := np.flatnonzero(np.isinf(offsets)).tolist():
        raise UserError(f"{where}: {rows - len(missing)} frames for {rows} rows: there is none for row {missing[0]}")
    return frames


def _decoded(container: Any, start: float, where: str) -> Iterator[Any]:
    """The frames of a video in the order of time, from the key frame before `start` (seconds)."""
    stream = next(iter(container.streams.video), None)
    if stream is None:
        raise UserError(f"{where}: it holds no video")
    if stream.codec_context is None:
        raise UserError(f"{where}: the installed PyAV has no decoder for it: transcode it to H.264 or AV1")
    stream.thread_type = "AUTO"
    container.seek(int(start / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.time is None or frame.is_corrupt:
            raise UserError(f"{where}: a frame is damaged, or has no time")
        yield frame
