"""Clips stored as one picture: frames stacked vertically (the paper's data) or side by side (Weizmann of MoCoGAN).

The original stabilization script and its released data keep a clip of 16 to 34 frames of 128 px as one JPEG, 128 px
wide, and name the clips in a list file, one relative path a line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vgan.errors import BadVideo
from vgan.video.decode import Frame, Probe, reduced_size

FORMATS = ("JPEG", "PNG")  # MoCoGAN's strips are called .jpg and are PNG
MIN_FRAMES = 16  # the original's shortest clip; a picture of fewer squares is a picture
MAX_PIXELS = 2**26  # 4,096 frames of 128 px; 200 MB decoded. A few kB of PNG can claim far more
MAX_BYTES = 3 * MAX_PIXELS  # no sane coding is larger than the pixels themselves
MAX_SIDE = 65_500  # what libjpeg writes, pixels
PICTURE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    Image.DecompressionBombError,
)  # what PIL raises


def is_strip(path: str | Path) -> bool:
    """Whether a file is a clip stored as one picture: a still JPEG or PNG of at least MIN_FRAMES squares in a line."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            short, long = sorted(picture.size)
            return not getattr(picture, "is_animated", False) and long % short == 0 and long // short >= MIN_FRAMES
    except PICTURE_FAULTS:
        return False


def probe_strip(path: str | Path, fps: float) -> Probe:
    """What a strip's header tells, played at `fps` frames a second.

    Raises:
        BadVideo: decode, cannot_open.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            side, long = sorted(picture.size)
            codec = str(picture.format).lower()
    except PICTURE_FAULTS as fault:
        raise BadVideo("decode", "cannot_open", _first_line(fault)) from fault
    length_s = long // side / fps
    return Probe(duration_s=length_s, width=side, height=side, fps=fps, codec=codec, container="strip", rotation=0)


def read_strip(data: bytes) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 RGB of a strip, H = W, as they are stored; JPEG or PNG, alpha is dropped.

    The frames are square, so the shape tells the layout: a height that is a multiple of the width is a vertical strip,
    a width that is a multiple of the height a horizontal one. Any other picture of such a shape passes for a strip too.

    Raises:
        BadVideo: stage "decode", reason not_a_strip, cannot_open (no such picture, or too large), corrupt (cut off or
            damaged; damage inside a JPEG that still decodes is not seen).
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except PICTURE_FAULTS as fault:
        raise BadVideo("decode", "cannot_open", _first_line(fault)) from fault
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadVideo("decode", "cannot_open", f"{width}x{height} pixels, at most {MAX_PIXELS} are read")
    side = min(width, height)
    if max(width, height) % side:
        raise BadVideo("decode", "not_a_strip", f"{width}x{height} pixels is no row or column of squares")
    try:
        strip = np.asarray(picture.convert("RGB"))  # (T * side, side, 3) or (side, T * side, 3)
    except MemoryError as fault:
        raise BadVideo("decode", "out_of_memory", str(fault)) from fault
    except PICTURE_FAULTS as fault:
        raise BadVideo("decode", "corrupt", _first_line(fault)) from fault
    if height >= width:
        return strip.reshape(-1, side, side, 3)
    return np.ascontiguousarray(strip.reshape(side, -1, side, 3).swapaxes(0, 1))


def write_strip(frames: np.ndarray, vertical: bool = True, quality: int = 95) -> bytes:
    """JPEG of frames (T, H, W, 3) uint8 RGB, H = W, one below the other or side by side.

    Colours keep their full resolution (4:4:4), for at 64 px halved ones are seen. Sides that are a multiple of 8 keep
    frames apart: then no block of the JPEG holds pixels of two.

    Raises:
        ValueError: frames are not square, of another type, none, or more than a JPEG's 65,500 pixels hold.
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
    """Frames of a strip's file, the n-th (from 0) at n / fps seconds; reduced to `short_side` pixels, never enlarged.

    A strip stores no rate: the original took frames at their video's own and played them at 25 a second.

    Raises:
        BadVideo: as `read_strip`; cannot_open also where the file is larger than any strip, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as fault:
        raise BadVideo("decode", "cannot_open", _first_line(fault)) from fault
    if len(data) > MAX_BYTES:
        raise BadVideo("decode", "cannot_open", f"more than {MAX_BYTES} bytes")
    for number, image in enumerate(read_strip(data)):
        side, _ = reduced_size(image.shape[0], image.shape[1], short_side)
        if side != image.shape[0]:
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
        yield Frame(number / fps, image)


def read_list(text: str) -> list[str]:
    """Relative paths of a list file (golf.txt, list.txt), one a line, in its order; a label after the path is left out.

    A label is a whole number behind a file's ending and white space, as in the original's UCF101 list. Paths come as
    they are written: whoever opens them must see that they stay inside the data's folder.
    """
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    return [re.sub(r"(\.\w{2,4})\s+\d+$", r"\1", line) for line in lines if line]


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]
