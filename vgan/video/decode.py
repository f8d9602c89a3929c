"""Decoding of a video file into downscaled RGB frames with presentation times (PTS), by PyAV or decord.

Use `child.Decoder` for untrusted files: native decoders crash, hang and leak memory on broken input.

The default backend follows from tests/benchmarks/decoding.py: PyAV returns the correct frames of every codec measured
and is the faster one on each, so `auto` means PyAV, and decord only if PyAV returns no frame.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter

from vgan.errors import VideoError, first_line
from vgan.video.config import DecodeConfig
from vgan.video.hdr import tone_map

DECORD_CHUNK = 16  # frames per call of decord: 1.4 MB at 128x228, and few calls
# Seeking in MPEG-PS and MPEG-TS ends up to one group of pictures after the requested key frame. A request this much
# earlier, two groups of a broadcast, mostly avoids decoding from the beginning. It also skips leading B-frames.
PREROLL_S = 1.0
UNSEEKABLE = ("mxf",)  # formats whose times after seeking differ from those of sequential decoding
HD_LINES = 720  # without a color matrix, pictures of at least this height are BT.709, others BT.601 (as in players)
HDR_CURVES: dict[int, str] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
MAX_PIXEL_ASPECT = 4  # no standard has pixels more than 2.4 times wider than high; larger values are header errors


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture: image (H, W, 3) uint8 RGB, displayed from pts_s seconds on the source's clock."""

    pts_s: float
    image: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMetadata:
    """Metadata of a video file. Duration and rate may be wrong: use them for segments, but leave the last one open."""

    duration_s: float | None
    width: int  # as displayed, pixels: upright, with square pixels
    height: int
    fps: float | None  # average frames per second, None if the file does not state it
    codec: str  # FFmpeg's name: h264, hevc, vp9, av1, mpeg4
    container: str  # FFmpeg's name: mov,mp4,m4a,3gp,3g2,mj2
    rotation: int  # counterclockwise rotation of the stored picture to upright, degrees: 0, 90, 180 or 270


def probe_video(path: str | Path) -> VideoMetadata:
    """Read the header and the first frame of a file.

    Raises:
        VideoError: as `frames`.
    """
    with _open_video(path) as video:
        first = next(_timed(video), None)
        if first is None:
            raise VideoError("decode", "no_frames", "the decoder reached the end without a timed frame")
        layout = _Layout(first[1], video.stream.sample_aspect_ratio)
        container, stream = video.container, video.stream
        duration_s = None
        if container.duration is not None and container.duration > 0:
            duration_s = container.duration / av.time_base
        elif stream.duration and stream.time_base:
            duration_s = float(stream.duration * stream.time_base)
        rate = stream.average_rate  # not guessed_rate, which is 120 for an ASF file of 10 frames per second
        return VideoMetadata(
            duration_s=duration_s,
            width=layout.width,
            height=layout.height,
            fps=float(rate) if rate else None,
            codec=stream.codec_context.codec.canonical_name,
            container=container.format.name,
            rotation=first[1].rotation % 360 if layout.swapped or layout.upside_down else 0,
        )


def frames(
    path: str | Path,
    config: DecodeConfig,
    start_s: float = 0.0,
    end_s: float = math.inf,
    native: bool = False,
    on_skip: Callable[[float], None] = lambda _pts_s: None,
) -> Iterator[Frame]:
    """Yield the frames of the main video stream in order of presentation, upright, with square pixels.

    PTS increase strictly; frames without a PTS, or with one that does not increase, are dropped. All frames of a file
    have the shape of its first one. Only the file itself is opened: its name is not interpreted as a URL.

    A segment contains the frames that sequential decoding of the file yields in that interval. Decoding starts at a key
    frame before it, or at the beginning of the file if seeking fails. After damage in the middle of a file sequential
    decoding ends; a segment that starts after the damage may yield frames or raise `corrupt`.

    HDR pictures (PQ, HLG) are tone-mapped for standard displays (`hdr.tone_map`). decord supports neither curve: its
    frames have low contrast and saturation, but keep their texture.

    Args:
        path: video file.
        config: backend, and `size`, the maximum short side in pixels.
        start_s: start of the segment [start_s, end_s), seconds after the file's first frame.
        end_s: end of the segment, exclusive.
        native: keep the resolution of the file instead of downscaling to `config.size`.
        on_skip: called with the PTS of each frame that is decoded before the segment.

    Raises:
        VideoError: stage "decode", reason no_video_stream, cannot_open, no_frames (none in the file; a segment after
            its end is empty without an error), corrupt (the decoder failed after the first frame; frames
            yielded before are valid) or out_of_memory.
    """
    read = _decord_frames if config.backend == "decord" else _pyav_frames
    yield from read(path, None if native else config.short_side, start_s, end_s, on_skip)


def reduced_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return (height, width) in pixels, downscaled to a short side of at most `short_side`, with equal aspect ratio."""
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def square_pixels(height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return the (height, width) with square pixels of a picture with pixels `pixel_aspect` times wider than high.

    The dimension along the longer side of a pixel remains, the other one shrinks, so that no dimension grows. An
    invalid `pixel_aspect` counts as 1.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return height, width
    if pixel_aspect > 1:
        return max(1, round(height / pixel_aspect)), width
    return height, max(1, round(width * pixel_aspect))


# ---- PyAV --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Video:
    """Open file and its main video stream."""

    container: av.container.InputContainer
    stream: av.VideoStream


@contextmanager
def _open_video(path: str | Path) -> Iterator[_Video]:
    """Open the main video stream of a file; errors of opening, and of decoding in the block, become VideoError."""
    opened = False
    try:
        with av.open(
            f"file:{os.fspath(path)}",  # without the scheme FFmpeg reads "a:b.mp4" as protocol a
            options={"protocol_whitelist": "file"},  # a playlist must not make the decoder open URLs
            metadata_errors="ignore",
        ) as container:
            stream = _main_stream(container)
            opened = True
            yield _Video(container, stream)
    except MemoryError as error:
        raise VideoError("decode", "out_of_memory", str(error)) from error
    except (av.FFmpegError, ValueError) as error:  # PyAV raises ValueError for pixel formats it cannot convert
        raise VideoError("decode", "no_frames" if opened else "cannot_open", first_line(error)) from error


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return FFmpeg's choice among the video streams, without cover pictures of music, set to decode on one thread."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError("decode", "no_video_stream", f"{len(container.streams)} other streams")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError("decode", "cannot_open", "no decoder for this codec")
    stream.thread_type = "NONE"  # many decoders share a machine, one per core
    stream.codec_context.thread_count = 1
    return stream


def _pyav_frames(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: Callable[[float], None]
) -> Iterator[Frame]:
    """Yield `frames` by PyAV."""
    first = None
    try:
        with _open_video(path) as video:
            decoded_frames = _timed(video)
            first = next(decoded_frames, None)
            if first is None:
                raise VideoError("decode", "no_frames", "the decoder reached the end without a timed frame")
            first_s = first[0]
            convert = _Layout(first[1], video.stream.sample_aspect_ratio).converter(short_side)
            timed: Iterator[tuple[float, av.VideoFrame]] = itertools.chain([first], decoded_frames)
            if start_s > 0:
                after_seek = _seek(video, first_s + start_s)
                timed = _timed_from_start(path) if after_seek is None else after_seek
            for pts_s, decoded in timed:
                if pts_s - first_s >= end_s:
                    return
                if pts_s - first_s < start_s:
                    on_skip(pts_s)
                    continue
                yield Frame(pts_s, convert(decoded))
    except VideoError as error:
        if first is not None and error.reason == "no_frames":
            raise VideoError("decode", "corrupt", error.detail) from error
        raise


def _timed(video: _Video) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (pts_s, decoded frame) from the container's current position, PTS strictly increasing."""
    rate = video.stream.average_rate or video.stream.guessed_rate
    clock = _Clock(has_pts=video.container.format.name != "avi", interval_s=float(1 / rate) if rate else None)
    last_pts_s = -math.inf
    for decoded in video.container.decode(video.stream):
        pts_s = clock.time_s(decoded)
        if pts_s is not None and pts_s > last_pts_s:
            last_pts_s = pts_s
            yield pts_s, decoded


def _timed_from_start(path: str | Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Open the file again and yield `_timed` from its beginning."""
    with _open_video(path) as video:
        yield from _timed(video)


def _seek(video: _Video, target_s: float) -> Iterator[tuple[float, av.VideoFrame]] | None:
    """Seek to a key frame at or before `target_s` and return `_timed` from there; None if seeking fails."""
    if video.container.format.name in UNSEEKABLE:
        return None
    try:
        offset = math.floor((target_s - PREROLL_S) / video.stream.time_base)
        video.container.seek(offset, stream=video.stream, backward=True)
        timed = _timed(video)
        first = next(timed, None)
    except (av.FFmpegError, ValueError, OverflowError):
        return None
    if first is None or first[0] > target_s:
        return None
    return itertools.chain([first], timed)


class _Clock:
    """Presentation times from PTS and DTS, chosen as by FFmpeg's tools ("best effort timestamp").

    The decoder returns frames in order of presentation, so a time that does not increase is wrong. AVI stores no PTS:
    the values read count packets in coding order, which is wrong with B-frames (as in UCF101). A frame without a time,
    such as the last ones of these files, is placed `interval_s` after the preceding frame.
    """

    def __init__(self, has_pts: bool, interval_s: float | None) -> None:
        self._last_pts = self._last_dts = -math.inf
        self._pts_faults, self._dts_faults = 0 if has_pts else 1, 0
        self._interval_s = interval_s
        self._last_s: float | None = None

    def time_s(self, decoded: av.VideoFrame) -> float | None:
        """Return the presentation time of the next frame in seconds, None if it is unknown."""
        pts, dts = decoded.pts, decoded.dts
        if pts is not None:
            self._pts_faults += pts <= self._last_pts
            self._last_pts = pts
        if dts is not None:
            self._dts_faults += dts <= self._last_dts
            self._last_dts = dts
        has_dts = self._last_dts > -math.inf
        chosen = dts if pts is None or (has_dts and self._pts_faults > self._dts_faults) else pts
        if chosen is not None and decoded.time_base is not None:
            self._last_s = float(chosen * decoded.time_base)
        elif self._last_s is not None and self._interval_s is not None:
            self._last_s += self._interval_s
        return self._last_s


class _Layout:
    """Conversion from stored to displayed pictures (upright, square pixels), from the first frame of a file."""

    def __init__(self, first: av.VideoFrame, pixel_aspect: Fraction | None) -> None:
        self.swapped, self.upside_down, self.mirrored = _display_orientation(first)
        self._stored = square_pixels(first.height, first.width, pixel_aspect)
        self.height, self.width = self._stored[::-1] if self.swapped else self._stored

    def converter(self, short_side: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
        """Return a function that converts decoded frames to (H, W, 3) uint8 RGB: area downscaling, then orientation."""
        height, width = reduced_size(*self._stored, short_side)
        # Shared by all frames: creating a scaler per frame, as `to_ndarray` does, takes two thirds of the time.
        reformatter = VideoReformatter()

        def convert(decoded: av.VideoFrame) -> np.ndarray:
            curve = HDR_CURVES.get(decoded.color_trc)
            scaled = reformatter.reformat(
                decoded,
                width=width,
                height=height,
                format="rgb48le" if curve else "rgb24",
                src_colorspace=_matrix(decoded),
                interpolation=Interpolation.AREA,
                threads=1,
            )
            image = scaled.to_ndarray()
            if curve:
                image = tone_map(image, curve, wide=decoded.color_primaries != ColorPrimaries.BT709)
            if self.swapped:
                image = image.swapaxes(0, 1)
            return np.ascontiguousarray(image[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])

        return convert


def _display_orientation(first: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return the steps (swap axes, flip vertically, flip horizontally) of the display matrix, in this order.

    All are False if the matrix is not a rotation or reflection by right angles. The matrix [a b; c d] maps stored
    (x, y) to displayed (a x + c y, b x + d y). Phones write rotations, and front cameras reflections.
    """
    try:
        data = first.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 fails for all side data if one item has an unknown type, such as a photo's EXIF
        return _orientation_by_rotation(first.rotation)
    if data is None:
        return False, False, False
    (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 2**16
    if abs(a) == abs(d) == 1 and b == c == 0:
        return False, d < 0, a < 0
    if abs(b) == abs(c) == 1 and a == d == 0:
        return True, b < 0, c < 0
    return False, False, False


def _orientation_by_rotation(degrees: int) -> tuple[bool, bool, bool]:
    """Return `_display_orientation` for a counterclockwise rotation; reflections are not represented."""
    orientations = {90: (True, True, False), 180: (False, True, True), 270: (True, False, True)}
    return orientations.get(degrees % 360, (False, False, False))


def _matrix(decoded: av.VideoFrame) -> int | None:
    """Return the assumed color matrix of a frame without one; None if the frame specifies it."""
    if decoded.colorspace != 2 or decoded.format.is_rgb:
        return None
    if decoded.color_trc in HDR_CURVES:
        return Colorspace.BT2020
    return Colorspace.ITU709 if decoded.height >= HD_LINES else None


# ---- decord ------------------------------------------------------------------------------------------------------


def _decord_frames(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: Callable[[float], None]
) -> Iterator[Frame]:
    """Yield `frames` by decord, read sequentially from the start: its seeking returns wrong frames on some files."""
    # DECORD_EOF_RETRY_MAX stays at its default of 10240 polls: at 64, intact files with B-frames fail to open.
    import decord

    first_s: float | None = None
    started = False
    last_pts_s = -math.inf
    try:
        name = f"file:{os.fspath(path)}"
        height, width = decord.VideoReader(name, num_threads=1)[0].shape[:2]  # upright
        height, width = square_pixels(height, width, _upright_pixel_aspect(path, width))
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
                yield Frame(pts_s, image)
    except MemoryError as error:
        raise VideoError("decode", "out_of_memory", str(error)) from error
    except UnicodeEncodeError as error:
        raise VideoError("decode", "cannot_open", "decord cannot open a file name that is not UTF-8") from error
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        raise VideoError("decode", "corrupt" if started else "cannot_open", first_line(error)) from error
    if first_s is None:
        raise VideoError("decode", "no_frames", "decord returned no frame")


def _upright_pixel_aspect(path: str | Path, upright_width: int) -> Fraction | None:
    """Return the pixel aspect ratio (width / height) of the upright picture, which decord lacks; None if unknown."""
    try:
        with _open_video(path) as video:
            pixel_aspect, rotated = video.stream.sample_aspect_ratio, video.stream.width != upright_width
    except VideoError:
        return None
    return 1 / pixel_aspect if pixel_aspect and rotated else pixel_aspect


def backend_version(backend: str) -> str:
    """Return name and version of a backend and its FFmpeg libraries, for a dataset's provenance."""
    if backend == "decord":
        import decord

        return f"decord {decord.__version__} / FFmpeg 4.1"
    if backend == "pillow":
        return f"pillow {PIL.__version__}"
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__} / libavcodec {libavcodec}"
