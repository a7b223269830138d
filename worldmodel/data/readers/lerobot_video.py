"""Frames of an episode out of a LeRobotDataset's MP4 files, by their time."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from worldmodel.data.readers.lerobot_index import Clip
from worldmodel.data.readers.lerobot_parquet import Feature, need
from worldmodel.errors import UserError

FORMATS = {1: "gray", 3: "rgb24"}  # FFmpeg's names of 1 and 3 channels


def frames_of(clip: Clip, rows: int, fps: float, feature: Feature, where: str) -> np.ndarray:
    """The frames nearest to clip.start + row / fps, (rows, H, W, C); no frame of another episode, none twice."""
    av = need("av")
    frames, offsets = np.empty((0, *feature.shape), np.uint8), np.full(rows, math.inf)
    try:
        # the format is given: others, which FFmpeg might guess, name files that it would open
        with clip.path.open("rb") as file, av.open(file, format="mp4", metadata_errors="ignore") as container:
            for frame in _decoded(container, clip.start, where):
                row = round((frame.time - clip.start) * fps)
                if row >= rows or frame.time > clip.end - 0.5 / fps:
                    break
                offset = abs(frame.time - clip.start - row / fps)
                if row < 0 or offset >= offsets[row]:
                    continue
                if (frame.height, frame.width) != feature.shape[:2]:
                    size, told = f"{frame.height} x {frame.width}", f"{feature.shape[0]} x {feature.shape[1]}"
                    raise UserError(f"{where}: its frames are of {size} pixels; meta/info.json tells {told}")
                frames = frames if len(frames) else np.empty((rows, *feature.shape), np.uint8)
                frames[row] = frame.to_ndarray(format=FORMATS[feature.shape[2]]).reshape(feature.shape)
                offsets[row] = offset
    except av.error.FFmpegError as error:
        raise UserError(f"{where}: it cannot be decoded: it is damaged, or no MP4 ({error.strerror})") from error
    if missing := np.flatnonzero(np.isinf(offsets)).tolist():
        raise UserError(f"{where}: {rows - len(missing)} frames for {rows} rows: there is none for row {missing[0]}")
    return frames


def _decoded(container: Any, start: float, where: str) -> Iterator[Any]:
    """The frames of a video from the key frame before `start` on, in the order of time."""
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
