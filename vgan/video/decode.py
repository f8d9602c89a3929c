"""A video file becomes small RGB frames with presentation times, by PyAV or by decord.

Call `child.Decoder` on files you do not trust: native decoders crash, hang and eat memory on broken input.

Which backend is the default is decided by tests/benchmarks/decoding.py: PyAV gives the right frames of every codec
measured and is the faster one on each, so `auto` means PyAV, and decord only where PyAV gives nothing.
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

from vgan.config import DecodeConfig
from vgan.errors import BadVideo
from vgan.video.hdr import tone_map

DECORD_CHUNK = 16  # frames asked of decord at a time: 1.4 MB at 128x228, and few calls
# MPEG-PS and MPEG-TS land up to a group of pictures behind the key frame sought: asking for one this much earlier, two
# groups of a broadcast, mostly saves decoding from the beginning. It also lets leading B-frames pass by.
PREROLL_S = 1.0
UNSEEKABLE = ("mxf",)  # here the times after seeking are not those of the whole decode
HD_LINES = 720  # pictures this high that name no color matrix are BT.709, lower ones BT.601, as players assume
HDR_CURVES: dict[int, str] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
MAX_PIXEL_ASPECT = 4  # pixels are at most 2.4 times wider than high in any standard; beyond it the header is garbled


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: image (H, W, 3) uint8 RGB, shown from pts_s seconds on in the source's own time."""

    pts_s: float
    image: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a file says of itself. Duration and rate are claims: cut by them, but leave the last segment open-ended."""

    duration_s: float | None
    width: int  # as shown, pixels: upright, and of square pixels
    height: int
    fps: float | None  # frames a second on average, where the file tells
    codec: str  # FFmpeg's name: h264, hevc, vp9, av1, mpeg4
    container: str  # FFmpeg's name: mov,mp4,m4a,3gp,3g2,mj2
    rotation: int  # degrees counter-clockwise the stored picture is turned to stand upright: 0, 90, 180 or 270


def probe(path: str | Path) -> Probe:
    """Read the header and the first frame of a file.

    Raises:
        BadVideo: as `frames`.
    """
    with _opened(path) as video:
        first = next(_timed(video), None)
        if first is None:
            raise BadVideo("decode", "no_frames", "the decoder reached the end without a timed frame")
        layout = _Layout(first[1], video.stream.sample_aspect_ratio)
        container, stream = video.container, video.stream
        duration_s = None
        if container.duration is not None and container.duration > 0:
            duration_s = container.duration / av.time_base
        elif stream.duration and stream.time_base:
            duration_s = float(stream.duration * stream.time_base)
        rate = stream.average_rate  # not the guessed one: of a 10 frames/s ASF it says 120
        return Probe(
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
    """Frames of the file's main video stream in order of presentation, PTS strictly increasing, upright, square pixels.

    The short side is reduced to `config.size` while decoding, never enlarged, unless `native`. All frames of a file
    have one shape, that of its first. Frames without a time, or with one that does not advance, are left out. Only the
    file itself is opened: the name is never taken for a URL.

    Of a segment [start_s, end_s), in seconds after the file's first frame, these are the frames that the whole decode
    gives there. Decoding starts at a key frame before it, or at the beginning where the file cannot be sought;
    `on_skip` gets the time of each frame decoded on the way. What follows damage in the middle of a file is lost to the
    whole decode, which ends there; a segment that starts behind the damage may give it or report the damage.

    HDR pictures (PQ, HLG) come as an ordinary display would show them (`hdr.tone_map`); by decord, which knows neither
    curve, flat and dull, with all their texture.

    Raises:
        BadVideo: stage "decode", reason no_video_stream, cannot_open or no_frames (none in the file: a segment past its
            end is just empty); corrupt when the decoder fails after the first frame: what was given stays good;
            out_of_memory.
    """
    read = _decord_frames if config.backend == "decord" else _pyav_frames
    yield from read(path, None if native else config.size, start_s, end_s, on_skip)


def reduced_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels, reduced so that the shorter is at most `short_side`; the aspect ratio is kept."""
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def square_pixels(height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """(height, width) of a picture whose pixels are `pixel_aspect` times wider than high, shown with square ones.

    The longer direction of a pixel keeps its count, so that nothing is enlarged. An impossible aspect counts as 1.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return height, width
    if pixel_aspect > 1:
        return max(1, round(height / pixel_aspect)), width
    return height, max(1, round(width * pixel_aspect))


# ---- PyAV --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Video:
    """An open file and its main video stream."""

    container: av.container.InputContainer
    stream: av.VideoStream


@contextmanager
def _opened(path: str | Path) -> Iterator[_Video]:
    """The file's main video stream, ready to decode. What fails to open, or to decode in the block, is a BadVideo."""
    opened = False
    try:
        with av.open(
            f"file:{os.fspath(path)}",  # without the scheme FFmpeg takes "a:b.mp4" for protocol a
            options={"protocol_whitelist": "file"},  # a playlist must not make the decoder fetch other things
            metadata_errors="ignore",
        ) as container:
            stream = _main_stream(container)
            opened = True
            yield _Video(container, stream)
    except MemoryError as fault:
        raise BadVideo("decode", "out_of_memory", str(fault)) from fault
    except (av.FFmpegError, ValueError) as fault:  # PyAV raises ValueError for pixel formats it cannot convert
        raise BadVideo("decode", "no_frames" if opened else "cannot_open", _first_line(fault)) from fault


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """FFmpeg's choice among the video streams, cover pictures of songs aside, set to decode on one thread."""
    pictures = av.stream.Disposition.attached_pic
    films = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not films:
        raise BadVideo("decode", "no_video_stream", f"{len(container.streams)} other streams")
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise BadVideo("decode", "cannot_open", "no decoder for this codec")
    stream.thread_type = "NONE"  # many decoders share a machine, one core each
    stream.codec_context.thread_count = 1
    return stream


def _pyav_frames(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: Callable[[float], None]
) -> Iterator[Frame]:
    """`frames` by PyAV."""
    first = None
    try:
        with _opened(path) as video:
            whole = _timed(video)
            first = next(whole, None)
            if first is None:
                raise BadVideo("decode", "no_frames", "the decoder reached the end without a timed frame")
            first_s = first[0]
            convert = _Layout(first[1], video.stream.sample_aspect_ratio).converter(short_side)
            timed: Iterator[tuple[float, av.VideoFrame]] = itertools.chain([first], whole)
            if start_s > 0:
                sought = _sought(video, first_s + start_s)
                timed = _timed_again(path) if sought is None else sought
            for pts_s, decoded in timed:
                if pts_s - first_s >= end_s:
                    return
                if pts_s - first_s < start_s:
                    on_skip(pts_s)
                    continue
                yield Frame(pts_s, convert(decoded))
    except BadVideo as fault:
        if first is not None and fault.reason == "no_frames":
            raise BadVideo("decode", "corrupt", fault.detail) from fault
        raise


def _timed(video: _Video) -> Iterator[tuple[float, av.VideoFrame]]:
    """(pts_s, decoded) from where the container stands, PTS strictly increasing."""
    rate = video.stream.average_rate or video.stream.guessed_rate
    clock = _Clock(has_pts=video.container.format.name != "avi", interval_s=float(1 / rate) if rate else None)
    last_pts_s = -math.inf
    for decoded in video.container.decode(video.stream):
        pts_s = clock.time_s(decoded)
        if pts_s is not None and pts_s > last_pts_s:
            last_pts_s = pts_s
            yield pts_s, decoded


def _timed_again(path: str | Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """`_timed` from the beginning of a file opened anew."""
    with _opened(path) as video:
        yield from _timed(video)


def _sought(video: _Video, target_s: float) -> Iterator[tuple[float, av.VideoFrame]] | None:
    """`_timed` from a key frame at or before `target_s`, None where the file cannot be sought to one."""
    if video.container.format.name in UNSEEKABLE:
        return None
    try:
        offset = math.floor((target_s - PREROLL_S) / video.stream.time_base)
        video.container.seek(offset, stream=video.stream, backward=True)
        timed = _timed(video)
        landed = next(timed, None)
    except (av.FFmpegError, ValueError, OverflowError):
        return None
    if landed is None or landed[0] > target_s:
        return None
    return itertools.chain([landed], timed)


class _Clock:
    """Presentation times from a frame's two clocks, as FFmpeg's own tools choose them ("best effort").

    Frames leave the decoder in order of presentation, so a clock that runs backwards is wrong. AVI stores no
    presentation times: what is read there counts packets in coding order, wrong wherever B-frames are (as in UCF101).
    A frame without a time, as the last ones of such files, follows the one before it after `interval_s`.
    """

    def __init__(self, has_pts: bool, interval_s: float | None) -> None:
        self._last_pts = self._last_dts = -math.inf
        self._pts_faults, self._dts_faults = 0 if has_pts else 1, 0
        self._interval_s = interval_s
        self._last_s: float | None = None

    def time_s(self, decoded: av.VideoFrame) -> float | None:
        """Seconds, or None when the time cannot be told."""
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
    """How a stored picture is shown: upright, with square pixels. Taken from a file's first frame."""

    def __init__(self, first: av.VideoFrame, pixel_aspect: Fraction | None) -> None:
        self.swapped, self.upside_down, self.mirrored = _display_turns(first)
        self._stored = square_pixels(first.height, first.width, pixel_aspect)
        self.height, self.width = self._stored[::-1] if self.swapped else self._stored

    def converter(self, short_side: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
        """A function from decoded frames to (H, W, 3) uint8 RGB, reduced by area averaging, then turned."""
        height, width = reduced_size(*self._stored, short_side)
        # One for all frames: setting up the scaler anew for each, as `to_ndarray` does, takes two thirds of the time.
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


def _display_turns(first: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(axes swapped, then upside down, then mirrored) of the display matrix; all False where it has no right angles.

    The matrix [a b; c d] sends stored (x, y) to shown (a x + c y, b x + d y). Phones write rotations, and front cameras
    reflections.
    """
    try:
        data = first.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 gives up on all side data where there is a kind it cannot name, such as a photo's EXIF
        return _turns_by_rotation(first.rotation)
    if data is None:
        return False, False, False
    (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 2**16
    if abs(a) == abs(d) == 1 and b == c == 0:
        return False, d < 0, a < 0
    if abs(b) == abs(c) == 1 and a == d == 0:
        return True, b < 0, c < 0
    return False, False, False


def _turns_by_rotation(degrees: int) -> tuple[bool, bool, bool]:
    """What `_display_turns` gives for a rotation, counterclockwise; that the picture is mirrored is lost."""
    turns = {90: (True, True, False), 180: (False, True, True), 270: (True, False, True)}
    return turns.get(degrees % 360, (False, False, False))


def _matrix(decoded: av.VideoFrame) -> int | None:
    """The color matrix of a frame that names none, None where it does."""
    if decoded.colorspace != 2 or decoded.format.is_rgb:
        return None
    if decoded.color_trc in HDR_CURVES:
        return Colorspace.BT2020
    return Colorspace.ITU709 if decoded.height >= HD_LINES else None


# ---- decord ------------------------------------------------------------------------------------------------------


def _decord_frames(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: Callable[[float], None]
) -> Iterator[Frame]:
    """`frames` by decord, read in sequence from the beginning: its seeking returns wrong frames on some files."""
    # DECORD_EOF_RETRY_MAX stays at its default of 10240 polls: at 64, sound files with B-frames fail to open.
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
    except MemoryError as fault:
        raise BadVideo("decode", "out_of_memory", str(fault)) from fault
    except UnicodeEncodeError as fault:
        raise BadVideo("decode", "cannot_open", "decord cannot take a file name that is not UTF-8") from fault
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as fault:
        raise BadVideo("decode", "corrupt" if started else "cannot_open", _first_line(fault)) from fault
    if first_s is None:
        raise BadVideo("decode", "no_frames", "decord reports no frame")


def _upright_pixel_aspect(path: str | Path, upright_width: int) -> Fraction | None:
    """What decord does not tell: how many times wider than high the pixels are, once upright. None if nothing can."""
    try:
        with _opened(path) as video:
            pixel_aspect, turned = video.stream.sample_aspect_ratio, video.stream.width != upright_width
    except BadVideo:
        return None
    return 1 / pixel_aspect if pixel_aspect and turned else pixel_aspect


def backend_version(backend: str) -> str:
    """Name and version of a backend with its FFmpeg, for the record of what made a dataset."""
    if backend == "decord":
        import decord

        return f"decord {decord.__version__} / FFmpeg 4.1"
    if backend == "pillow":
        return f"pillow {PIL.__version__}"
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__} / libavcodec {libavcodec}"


def _first_line(fault: Exception) -> str:
    """The first line of a decoder's message, without its stack trace, 200 characters at most."""
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]
