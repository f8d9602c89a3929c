"""Generated clips and images as files on any storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from cluster.storage.files import write_bytes
from vgan.video.encode import write_gif, write_mp4

MOVING: dict[str, Callable[[np.ndarray, str | Path, float], None]] = {"mp4": write_mp4, "gif": write_gif}


def write_media(frames: np.ndarray, still: np.ndarray, url: str, formats: Sequence[str], fps: float) -> None:
    """Write a clip in every requested format, each at `url` plus its suffix.

    Args:
        frames: (T, H, W, 3) uint8, H and W even, for mp4 and gif.
        still: (H, W, 3) uint8, for png.
        url: URL without suffix.
        formats: any of FORMATS.
        fps: frames per second.
    """
    for suffix in formats:
        with TemporaryDirectory() as scratch:  # encoders need seekable files, object stores offer none
            path = Path(scratch) / f"video.{suffix}"
            if suffix in MOVING:
                MOVING[suffix](frames, path, fps)
            else:
                Image.fromarray(still).save(path)
            write_bytes(f"{url}.{suffix}", path.read_bytes())
