"""Drawn clips and pictures as files on any storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from cluster.storage.files import write_bytes
from vgan.video.encode import write_gif, write_mp4

MOVING: dict[str, Callable[[np.ndarray, str | Path, float], None]] = {"mp4": write_mp4, "gif": write_gif}
FORMATS = (*MOVING, "png")


def write_media(frames: np.ndarray, still: np.ndarray, url: str, formats: Sequence[str], fps: float) -> None:
    """Write a clip in every format asked for, each at `url` with its suffix.

    Args:
        frames: (T, H, W, 3) uint8, H and W even, for mp4 and gif.
        still: (H, W, 3) uint8, for png.
        formats: any of FORMATS.
        fps: frames a second.
    """
    for kind in formats:
        with TemporaryDirectory() as scratch:  # encoders seek, object stores do not
            path = Path(scratch) / f"video.{kind}"
            if kind in MOVING:
                MOVING[kind](frames, path, fps)
            else:
                Image.fromarray(still).save(path)
            write_bytes(f"{url}.{kind}", path.read_bytes())
