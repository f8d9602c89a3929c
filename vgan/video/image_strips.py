"""Image strips: clips stored as one picture, frames stacked vertically (the paper's data) or side by side (MoCoGAN).

The original stabilization script and its released data store a clip of 16 to 34 frames of 128 px as one JPEG, 128 px
wide, and list the clips in a text file, one relative path per line. MoCoGAN's horizontal strips are those of Weizmann.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vgan.errors import VideoError, first_line
from vgan.video.decoding.decode import Frame, VideoMetadata
from vgan.video.decoding.layout import reduced_size

FORMATS = ("JPEG", "PNG")  # MoCoGAN's strips have the extension .jpg and are PNG
MIN_FRAMES = 16  # shortest clip of the original; a picture of fewer squares is not a strip
MAX_PIXELS = 2**26  # 4,096 frames of 128 px, 200 MB decoded; a PNG of a few kB can declare far more
MAX_BYTES = 3 * MAX_PIXELS  # size of the uncompressed pixels, an upper bound for valid files
MAX_SIDE = 65_500  # maximum side that libjpeg writes, pixels
PICTURE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    Image.DecompressionBombError,
)  # exceptions of PIL for invalid files


def is_strip(path: str | Path) -> bool:
    """Return True if a file is a strip: a still JPEG or PNG of at least MIN_FRAMES squares in a row or column."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            short, long = sorted(picture.size)
            return not getattr(picture, "is_animated", False) and long % short == 0 and long // short >= MIN_FRAMES
    except PICTURE_FAULTS:
        return False


def probe_strip(path: str | Path, fps: float) -> VideoMetadata:
    """Read the header of a strip that plays at `fps` frames per second.

    Raises:
        VideoError: stage "decode", reason cannot_open.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            side, long = sorted(picture.size)
            codec = str(picture.format).lower()
    except PICTURE_FAULTS as error:
        raise VideoError("decode", "cannot_open", first_line(error)) from error
    duration_s = long // side / fps
    return VideoMetadata(
        duration_s=duration_s, width=side, height=side, fps=fps, codec=codec, container="strip", rotation=0
    )


def read_strip(data: bytes) -> np.ndarray:
    """Decode a strip (JPEG or PNG, without alpha) into frames (T, H, W, 3) uint8 RGB, H = W, in stored size.

    Frames are square, so the shape determines the layout: vertical if the height is a multiple of the width, horizontal
    if the width is a multiple of the height. Any picture of such a shape is accepted as a strip.

    Raises:
        VideoError: stage "decode", reason not_a_strip, cannot_open (not a JPEG or PNG, or too large), corrupt
            (truncated or damaged; damage in a JPEG that still decodes is not detected) or out_of_memory.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except PICTURE_FAULTS as error:
        raise VideoError("decode", "cannot_open", first_line(error)) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise VideoError("decode", "cannot_open", f"{width}x{height} pixels; at most {MAX_PIXELS} in total")
    side = min(width, height)
    if max(width, height) % side:
        raise VideoError("decode", "not_a_strip", f"{width}x{height} pixels are not a row or column of squares")
    try:
        strip = np.asarray(picture.convert("RGB"))  # (T * side, side, 3) or (side, T * side, 3)
    except MemoryError as error:
        raise VideoError("decode", "out_of_memory", str(error)) from error
    except PICTURE_FAULTS as error:
        raise VideoError("decode", "corrupt", first_line(error)) from error
    if height >= width:
        return strip.reshape(-1, side, side, 3)
    return np.ascontiguousarray(strip.reshape(side, -1, side, 3).swapaxes(0, 1))


def write_strip(frames: np.ndarray, vertical: bool = True, quality: int = 95) -> bytes:
    """Encode frames (T, H, W, 3) uint8 RGB, H = W, as a JPEG strip, vertical or horizontal.

    Color has full resolution (4:4:4), because subsampling is visible at 64 px. With a side that is a multiple of 8, no
    block of the JPEG contains pixels of two frames.

    Raises:
        ValueError: frames are not square, not uint8 RGB, none, or longer than the 65,500 pixels of a JPEG.
    """
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[3] != 3 or frames.shape[1] != frames.shape[2]:
        raise ValueError(f"frames must be (T, S, S, 3) uint8, got {frames.shape} {frames.dtype}")
    count, side = frames.shape[:2]
    if not 1 <= count * side <= MAX_SIDE:
        raise ValueError(f"a strip holds 1 to {MAX_SIDE} pixels of length, got {count} frames of {side}")
    rows = frames if vertical else frames.swapaxes(0, 1)  # (T, side, side, 3) or (side, T, side, 3)
    strip = rows.reshape((count * side, side, 3) if vertical else (side, count * side, 3))
    out = io.BytesIO()
    Image.fromarray(strip).save(out, format="JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def strip_frames(path: str | Path, fps: float, short_side: int | None = None) -> Iterator[Frame]:
    """Yield the frames of a strip file, frame n at n / fps seconds, downscaled to `short_side` pixels, never enlarged.

    A strip stores no frame rate: the original took frames at the rate of the video and played them at 25 per second.

    Raises:
        VideoError: as `read_strip`; cannot_open also if the file is larger than MAX_BYTES or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise VideoError("decode", "cannot_open", first_line(error)) from error
    if len(data) > MAX_BYTES:
        raise VideoError("decode", "cannot_open", f"more than {MAX_BYTES} bytes")
    for index, image in enumerate(read_strip(data)):
        side, _ = reduced_size(image.shape[0], image.shape[1], short_side)
        if side != image.shape[0]:
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
        yield Frame(index / fps, image)


def read_list(text: str) -> list[str]:
    """Parse a list file (golf.txt, list.txt) into relative paths, one per line, in order and without labels.

    A label is an integer after the file extension and white space, as in the original's UCF101 list. Paths are returned
    as written: the caller must check that they are inside the data folder.
    """
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    return [re.sub(r"(\.\w{2,4})\s+\d+$", r"\1", line) for line in lines if line]
