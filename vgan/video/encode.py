"""Encoding of frames as MP4 (for browsers), GIF (for documents) or AVI (as in UCF101)."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

FREE_BOX = struct.Struct(">I4s")  # length and name of a free-space box (ISO/IEC 14496-12, 8.1.2)
MAX_RATE_DENOMINATOR = 1001  # exact for integer rates and for NTSC's n * 1000 / 1001


def write_mp4(frames: np.ndarray, path: str | Path, fps: float) -> None:
    """Write `frames` (T, H, W, 3) uint8 RGB as H.264 4:2:0, which browsers play; odd sides are padded by one line."""
    options = {"crf": "18", "preset": "medium"}
    _write(frames, path, fps, "mp4", "libx264", options, {"movflags": "+faststart"})


def padded_mp4(data: bytes, size: int) -> bytes:
    """Pad the MP4 file `data` to `size` bytes with a free-space box, so that its length reveals nothing.

    Raises:
        ValueError: `data` is longer, or 1 to 7 bytes shorter, than `size`; a box has at least 8 bytes.
    """
    missing = size - len(data)
    if missing and missing < FREE_BOX.size:
        raise ValueError(f"a file of {len(data)} bytes cannot be padded to {size}")
    return data + (FREE_BOX.pack(missing, b"free").ljust(missing, b"\0") if missing else b"")


def write_avi(frames: np.ndarray, path: str | Path, fps: float, quality: int = 3) -> None:
    """Write `frames` (T, H, W, 3) uint8 RGB as XVID (MPEG-4 part 2); `quality` is the quantizer, 1 (best) to 31.

    Raises:
        ValueError: `quality` is out of range.
    """
    if not 1 <= quality <= 31:
        raise ValueError(f"quality must be 1 to 31, got {quality}")
    options = {"qmin": str(quality), "qmax": str(quality)}  # fixes the quantizer; PyAV cannot set it per frame
    _write(frames, path, fps, "avi", "mpeg4", options, {}, tag="XVID")


def write_gif(frames: np.ndarray, path: str | Path, fps: float) -> None:
    """Write `frames` (T, H, W, 3) uint8 RGB as an endlessly looping GIF.

    GIF counts time in hundredths of a second: frames get uneven durations, so that every frame starts within 5 ms of
    its exact time. Browsers slow down frames shorter than 0.02 s, so rates above 50 frames per second play slower
    there.
    """
    _check(frames)
    ends = np.rint(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    durations_ms = [int(duration) * 10 for duration in np.diff(ends)]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=durations_ms, loop=0)


def _write(
    frames: np.ndarray,
    path: str | Path,
    fps: float,
    container_format: str,
    codec: str,
    options: dict[str, str],
    container_options: dict[str, str],
    tag: str | None = None,
) -> None:
    """Encode `frames` as one video stream. The result does not depend on the number of cores."""
    _check(frames)
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(f"file:{path}", "w", format=container_format, container_options=container_options) as container:
        rate = Fraction(fps).limit_denominator(MAX_RATE_DENOMINATOR)
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if tag is not None:
            stream.codec_context.codec_tag = tag
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _check(frames: np.ndarray) -> None:
    """Raise ValueError unless `frames` is a non-empty (T, H, W, 3) uint8 array."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T >= 1, got {frames.dtype} {frames.shape}")
