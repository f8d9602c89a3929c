"""Decoding by decord, the second choice: it repeats or loses frames of some files and ignores damage."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vgan.errors import VideoError, first_line
from vgan.video.decoding.containers import open_video
from vgan.video.decoding.layout import reduced_size, square_pixels

DECORD_CHUNK = 16  # frames per call of decord: 1.4 MB at 128x228, and few calls


def decord_pictures(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: Callable[[float], None]
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (pts_s, picture (H, W, 3) uint8) by decord as `decode.frames` does.

    The file is read sequentially from its start, because decord's seeking returns wrong frames on some files.

    Raises:
        VideoError: as `decode.frames`; cannot_open also for containers that PyAV may not open (`containers.DEMUXERS`),
            because decord opens playlists and the files beside them.
    """
    # DECORD_EOF_RETRY_MAX stays at its default of 10240 polls: at 64, intact files with B-frames fail to open.
    import decord

    first_s: float | None = None
    started = False
    last_pts_s = -math.inf
    with open_video(path) as video:
        pixel_aspect, stored_width = video.stream.sample_aspect_ratio, video.stream.width
    try:
        name = f"file:{os.fspath(path)}"
        height, width = decord.VideoReader(name, num_threads=1)[0].shape[:2]  # upright
        if pixel_aspect and width != stored_width:  # rotated
            pixel_aspect = 1 / pixel_aspect
        height, width = square_pixels(height, width, pixel_aspect)
        height, width = reduced_size(height, width, short_side)
        reader = decord.VideoReader(name, num_threads=1, width=width, height=height)
        for start in range(0, len(reader), DECORD_CHUNK):
            indices = range(start, min(start + DECORD_CHUNK, len(reader)))
            times_s = reader.get_frame_timestamp(indices)[:, 0]
            images = reader.get_batch(indices).asnumpy()
            for pts_s, image in zip(times_s.tolist(), images, strict=True):
                if pts_s <= last_pts_s:
                    continue
                last_pts_s = pts_s
                first_s = pts_s if first_s is None else first_s
                if pts_s - first_s >= end_s:
                    return
                if pts_s - first_s < start_s:
                    on_skip(pts_s)
                    continue
                started = True
                yield pts_s, image
    except MemoryError as error:
        raise VideoError("decode", "out_of_memory", str(error)) from error
    except UnicodeEncodeError as error:
        raise VideoError("decode", "cannot_open", "decord cannot open a file name that is not UTF-8") from error
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        raise VideoError("decode", "corrupt" if started else "cannot_open", first_line(error)) from error
    if first_s is None:
        raise VideoError("decode", "no_frames", "decord returned no frame")
