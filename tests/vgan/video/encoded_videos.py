"""Videos in all formats that the encoders of PyAV can write."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

# name -> (file name, encoder, pixel format, encoder options)
KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "h264_mp4": ("a.mp4", "libx264", "yuv420p", {"bf": "3", "g": "12", "crf": "18"}),
    "h264_open_gop_mkv": (
        "a.mkv",
        "libx264",
        "yuv420p",
        {"bf": "3", "g": "12", "crf": "18", "x264-params": "open-gop=1"},
    ),
    "h264_ts": ("a.ts", "libx264", "yuv420p", {"bf": "2", "g": "12", "crf": "18"}),
    "h264_flv": ("a.flv", "libx264", "yuv420p", {"bf": "2", "g": "12", "crf": "18"}),
    "mpeg4_avi": ("a.avi", "mpeg4", "yuv420p", {"g": "12", "qscale": "2"}),
    "mpeg4_b_frames_avi": ("b.avi", "mpeg4", "yuv420p", {"bf": "2", "g": "12", "qscale": "2"}),
    "mpeg1_ps": ("a1.mpg", "mpeg1video", "yuv420p", {"bf": "2", "g": "12", "qscale": "2"}),
    "mpeg2_ps": ("a2.mpg", "mpeg2video", "yuv420p", {"bf": "2", "g": "12", "qscale": "2"}),
    "mpeg2_ts": ("a2.ts", "mpeg2video", "yuv420p", {"bf": "2", "g": "12", "qscale": "2"}),
    "wmv2_asf": ("a.wmv", "wmv2", "yuv420p", {"g": "12", "qscale": "2"}),
    "vp8_webm": ("a8.webm", "libvpx", "yuv420p", {"g": "12", "crf": "8", "deadline": "realtime", "b": "2M"}),
    "vp9_webm": ("a9.webm", "libvpx-vp9", "yuv420p", {"g": "12", "crf": "20", "deadline": "realtime", "cpu-used": "8"}),
    "av1_mp4": ("av1.mp4", "libsvtav1", "yuv420p", {"g": "12", "crf": "20", "preset": "12"}),
    "hevc_10bit_mp4": (
        "h10.mp4",
        "libx265",
        "yuv420p10le",
        {"g": "12", "crf": "18", "preset": "ultrafast", "x265-params": "log-level=none"},
    ),
    "mjpeg_mov": ("a.mov", "mjpeg", "yuvj420p", {"qscale": "2"}),
    "gif": ("a.gif", "gif", "rgb8", {}),
}


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray | av.VideoFrame],
    encoder: str,
    pix_fmt: str,
    options: dict[str, str] | None = None,
    *,
    rate: int = 25,
    pixel_aspect: Fraction | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    **properties: Any,
) -> Path:
    """Encode pictures (H, W, 3) uint8 RGB, or PyAV frames; `properties` are set on the encoder and its frames.

    `rotation`: degrees, then horizontal and vertical flip, for the container's display matrix.
    """
    with av.open(str(path), "w") as container:
        stream = None
        for index, picture in enumerate(pictures):
            frame = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            if stream is None:
                stream = container.add_stream(encoder, rate=rate, options=options or {})
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                stream.codec_context.thread_count = 1
                if pixel_aspect is not None:
                    stream.codec_context.sample_aspect_ratio = pixel_aspect
                if rotation is not None:
                    stream.set_display_rotation(*rotation)
                for name, value in properties.items():
                    setattr(stream.codec_context, name, value)
            for name, value in properties.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_kind(folder: Path, kind: str, pictures: Iterable[np.ndarray]) -> Path:
    """Write a video in one of the formats KINDS."""
    name, encoder, pix_fmt, options = KINDS[kind]
    return write_video(folder / name, pictures, encoder, pix_fmt, options)
