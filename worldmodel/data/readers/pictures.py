"""Pictures that lie compressed in other files, JPEG or PNG."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.errors import UserError

FLOOR, EXPANSION = 64 << 20, 1100  # bytes that pictures may unpack to; above that: this many times their file's size
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n")
FORMATS = ["JPEG", "PNG"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names of 1, 3 and 4 channels


def is_picture(encoded: bytes) -> bool:
    """Whether bytes begin as a JPEG or PNG file does."""
    return encoded.startswith(MAGIC)


def shape_of(encoded: bytes, where: str) -> tuple[int, ...]:
    """(H, W, 3), or (H, W) of a grey picture, from its header alone."""
    try:
        with Image.open(BytesIO(encoded), formats=FORMATS) as image:
            return (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: the picture cannot be decoded ({error})") from None


def decoded(encoded: bytes, shape: Sequence[int], where: str) -> np.ndarray:
    """A picture as uint8 of `shape`, (H, W) or (H, W, C); a UserError if it is damaged or of another size."""
    try:
        with Image.open(BytesIO(encoded), formats=FORMATS) as image:
            size = [image.height, image.width]  # from the header, before anything is decoded
            if size == [*shape[:2]]:
                return np.asarray(image.convert(MODES[shape[2] if len(shape) > 2 else 1])).reshape(shape)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is damaged, or neither PNG nor JPEG ({error})") from error
    raise UserError(f"{where} is {size[0]} x {size[1]} pixels; it should be {shape[0]} x {shape[1]}")


def check_unpacked(rows: int, shape: Sequence[int], path: Path, where: str) -> None:
    """Raise UserError if so many pictures are more than their file can hold."""
    if (size := rows * math.prod(shape)) > max(FLOOR, EXPANSION * path.stat().st_size):
        raise UserError(f"{where}: its frames would take {size:,} bytes, more than {path.name} can hold")
