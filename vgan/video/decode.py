"""A video file becomes small RGB frames with presentation times: PyAV first, decord second.

Call `child.isolated_frames` on files you do not trust: native decoders crash, hang and eat memory on broken input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from vgan.config import DecodeConfig
from vgan.errors import BadVideo

DECORD_CHUNK = 16  # frames asked of decord at a time: 1.4 MB at 128x228, and few calls


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: image (H, W, 3) uint8 RGB, shown from pts_s seconds on in the source's own time."""

    pts_s: float
    image: np.ndarray


def frames(path: str | Path, config: DecodeConfig) -> Iterator[Frame]:
    """Frames of the file's first video stream in order of presentation, PTS strictly increasing, upright.

    The short side is reduced to `config.size` while decoding, never enlarged. Frames without a time, or with one that
    does not advance, are left out. Only the file itself is opened: the name is never taken for a URL.

    Raises:
        BadVideo: stage "decode", reason no_video_stream, cannot_open or no_frames; corrupt when the decoder fails after
            frames were given, which stay good; out_of_memory.
    """
    if config.backend == "decord":
        yield from _decord_frames(path, config.size)
        return
    started = False
    try:
        for frame in _pyav_frames(path, config.size):
            started = True
            yield frame
        return
    except BadVideo as fault:
        if started or config.backend == "pyav" or fault.reason == "out_of_memory":
            raise
        first_fault = fault
    try:
        for frame in _decord_frames(path, config.size):
            started = True
            yield frame
    except BadVideo as fault:
        raise (fault if started else first_fault) from fault


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) in pixels, reduced so that the shorter is at most `short_side`; the aspect ratio is kept."""
    scale = min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pyav_frames(path: str | Path, short_side: int) -> Iterator[Frame]:
    """`frames` by PyAV."""
    opened = started = False
    last_pts_s = -np.inf
    try:
        with av.open(
            f"file:{os.fspath(path)}",  # without the scheme FFmpeg takes "a:b.mp4" for protocol a
            options={"protocol_whitelist": "file"},  # a playlist must not make the decoder fetch other things
            metadata_errors="ignore",
        ) as container:
            if not container.streams.video:
                raise BadVideo("decode", "no_video_stream", f"{len(container.streams)} other streams")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BadVideo("decode", "cannot_open", "no decoder for this codec")
            opened = True
            stream.thread_type = "NONE"  # many decoders share a machine, one core each
            stream.codec_context.thread_count = 1
            clock = _Clock(has_pts=container.format.name != "avi")
            for decoded in container.decode(stream):
                pts_s = clock.time_s(decoded)
                if pts_s is None or pts_s <= last_pts_s:
                    continue
                started, last_pts_s = True, pts_s
                yield Frame(pts_s, _upright_image(decoded, short_side))
    except MemoryError as fault:
        raise BadVideo("decode", "out_of_memory", str(fault)) from fault
    except (av.FFmpegError, ValueError) as fault:  # PyAV raises ValueError for pixel formats it cannot convert
        reason = "corrupt" if started else "no_frames" if opened else "cannot_open"
        raise BadVideo("decode", reason, _first_line(fault)) from fault
    if not started:
        raise BadVideo("decode", "no_frames", "the decoder reached the end without a timed frame")


class _Clock:
    """Presentation times from a frame's two clocks, as FFmpeg's own tools choose them ("best effort").

    Frames leave the decoder in order of presentation, so a clock that runs backwards is wrong. AVI stores no
    presentation times: what is read there counts packets in coding order, wrong wherever B-frames are (as in UCF101).
    """

    def __init__(self, has_pts: bool) -> None:
        self._last_pts = self._last_dts = -np.inf
        self._pts_faults, self._dts_faults = 0 if has_pts else 1, 0

    def time_s(self, decoded: av.VideoFrame) -> float | None:
        """Seconds, or None when the frame carries no time at all."""
        pts, dts = decoded.pts, decoded.dts
        if pts is not None:
            self._pts_faults += pts <= self._last_pts
            self._last_pts = pts
        if dts is not None:
            self._dts_faults += dts <= self._last_dts
            self._last_dts = dts
        chosen = dts if pts is None or (dts is not None and self._pts_faults > self._dts_faults) else pts
        return None if chosen is None or decoded.time_base is None else float(chosen * decoded.time_base)


def _upright_image(decoded: av.VideoFrame, short_side: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: reduced by area averaging, then turned as the file's display matrix says."""
    height, width = reduced_size(decoded.height, decoded.width, short_side)
    image = decoded.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    if decoded.rotation in (90, -90, 180, -180):  # anything else is a garbled matrix or a deliberate tilt
        image = np.rot90(image, decoded.rotation // 90)
    return np.ascontiguousarray(image)


def _decord_frames(path: str | Path, short_side: int) -> Iterator[Frame]:
    """`frames` by decord, read in sequence: its seeking returns wrong frames on some files."""
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "64")  # its default of 10240 spins for minutes on truncated files
    import decord

    started = False
    last_pts_s = -np.inf
    try:
        name = f"file:{os.fspath(path)}"
        height, width = decord.VideoReader(name, num_threads=1)[0].shape[:2]
        height, width = reduced_size(height, width, short_side)
        reader = decord.VideoReader(name, num_threads=1, width=width, height=height)
        for start in range(0, len(reader), DECORD_CHUNK):
            indices = range(start, min(start + DECORD_CHUNK, len(reader)))
            times_s = reader.get_frame_timestamp(indices)[:, 0]
            images = reader.get_batch(indices).asnumpy()
            for pts_s, image in zip(times_s.tolist(), images, strict=True):
                if pts_s <= last_pts_s:
                    continue
                started, last_pts_s = True, pts_s
                yield Frame(pts_s, image)
    except MemoryError as fault:
        raise BadVideo("decode", "out_of_memory", str(fault)) from fault
    except UnicodeEncodeError as fault:
        raise BadVideo("decode", "cannot_open", "decord cannot take a file name that is not UTF-8") from fault
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as fault:
        raise BadVideo("decode", "corrupt" if started else "cannot_open", _first_line(fault)) from fault
    if not started:
        raise BadVideo("decode", "no_frames", "decord reports no frame")


def _first_line(fault: Exception) -> str:
    """The first line of a decoder's message, without its stack trace, 200 characters at most."""
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]
