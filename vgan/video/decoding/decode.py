"""Decoding of a video file into downscaled RGB frames with presentation times (PTS), by PyAV or decord.

Use `isolated_decoder.Decoder` for untrusted files: native decoders crash, hang and leak memory on broken input.

The default backend follows from tests/benchmarks/decoding.py: PyAV returns the correct frames of every codec measured
and is the faster one on each, so `auto` means PyAV, and decord only if PyAV returns no frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import PIL

from vgan.errors import VideoError
from vgan.records import Reject
from vgan.video.config import DecodeConfig
from vgan.video.decoding.containers import UNTIMED, Video, decode_packets, open_video
from vgan.video.decoding.damage import DamageFilter
from vgan.video.decoding.decord_backend import decord_pictures
from vgan.video.decoding.interlacing import (
    FIRST_FRAMES,
    MOST_FRAMES,
    Scan,
    detect_scan,
    may_be_interlaced,
    shows_fields,
    to_progressive,
)
from vgan.video.decoding.layout import MAX_TURN_ERROR_DEG, Layout
from vgan.video.decoding.timestamps import TimedFrame, Timeline, restarts

# Seeking in MPEG-PS and MPEG-TS ends up to one group of pictures after the requested key frame. A request this much
# earlier, two groups of a broadcast, mostly avoids decoding from the beginning. It also skips leading B-frames.
PREROLL_S = 1.0
UNSEEKABLE = UNTIMED | {"mxf"}  # formats whose times after seeking differ from those of sequential decoding
DEFAULT_INTERVAL_S = 0.04  # of frames in a filter, if the stream has no rate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture: image (H, W, 3) uint8 RGB, displayed from pts_s seconds on the source's clock.

    A new `run` starts where the file's times restart (recordings joined end to end) or the size changes: two frames
    of different runs do not follow each other.
    """

    pts_s: float
    image: np.ndarray
    run: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Treatment:
    """Changes that decoding makes to the frames of a video, found on its first frames."""

    deinterlaced: bool = False  # fields were interpolated to full frames
    cadence: str = ""  # "3:2": telecined film was converted back to its own frames, 4 of every 5
    notes: str = ""  # other properties of the file that decoding had to assume


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
    deinterlaced: bool = False  # this and the following as in `Treatment`, known after decoding
    cadence: str = ""
    notes: str = ""


OnSkip = Callable[[float], None]
OnDamage = Callable[[Reject], None]
OnFinding = Callable[[Reject | Treatment], None]


def ignore(_: object) -> None:
    """Ignore a finding."""


def probe_video(path: str | Path) -> VideoMetadata:
    """Read the header and the first frame of a file.

    Raises:
        VideoError: as `frames`.
    """
    with open_video(path) as video:
        first = next(_intact(video), None)
        if first is None:
            raise VideoError("decode", "no_frames", "the decoder reached the end without a timed frame")
        layout = Layout(first.decoded, first.pixel_aspect)
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
            rotation=first.decoded.rotation % 360 if layout.swapped or layout.upside_down else 0,
        )


def frames(
    path: str | Path,
    config: DecodeConfig,
    start_s: float = 0.0,
    end_s: float = math.inf,
    native: bool = False,
    on_skip: OnSkip = ignore,
    on_finding: OnFinding = ignore,
) -> Iterator[Frame]:
    """Yield the frames of the main video stream in order of presentation, upright, progressive, with square pixels.

    PTS increase strictly; frames with a PTS that does not increase are dropped, and times that restart continue in a
    new run. All frames of a size have one shape. Pictures after damage are dropped up to the next key frame. Only the
    file itself is opened: its name is not interpreted as a URL, and playlists are refused.

    A segment contains the frames that sequential decoding of the file yields in that interval. Decoding starts at a key
    frame before it, or at the beginning of the file if seeking fails.

    HDR pictures (PQ, HLG) are tone-mapped for standard displays (`hdr.tone_map`). decord supports neither curve: its
    frames have low contrast and saturation, but keep their texture. decord also ignores damage and interlacing.

    Args:
        path: video file.
        config: backend, and `size`, the maximum short side in pixels.
        start_s: start of the segment [start_s, end_s), seconds after the file's first frame.
        end_s: end of the segment, exclusive.
        native: keep the resolution of the file instead of downscaling to `config.size`.
        on_skip: called with the PTS of each frame that is decoded but not part of the segment or not intact.
        on_finding: called once with the Treatment, before the first frame, and with a Reject (decode, damaged) for each
            damage that begins in the segment.

    Raises:
        VideoError: stage "decode", reason no_video_stream, cannot_open, no_frames (none in the file; a segment after
            its end is empty without an error), corrupt (damage to the end of the file, or the decoder failed; frames
            yielded before are valid) or out_of_memory.
    """
    short_side = None if native else config.short_side
    if config.backend == "decord":
        pictures = decord_pictures(path, short_side, start_s, end_s, on_skip)
        yield from (Frame(pts_s, image) for pts_s, image in pictures)
    else:
        yield from _pyav_frames(path, short_side, start_s, end_s, on_skip, on_finding)


def _pyav_frames(
    path: str | Path, short_side: int | None, start_s: float, end_s: float, on_skip: OnSkip, on_finding: OnFinding
) -> Iterator[Frame]:
    """Yield `frames` by PyAV."""
    first: TimedFrame | None = None

    def report(damage: Reject) -> None:
        assert damage.start_s is not None
        if start_s <= damage.start_s - (first.pts_s if first else damage.start_s) < end_s:
            on_finding(damage)

    try:
        with open_video(path) as video:
            first, scan, timed = _examined(_intact(video, on_skip, report if start_s <= 0 else ignore))
            layout = Layout(first.decoded, first.pixel_aspect)
            on_finding(_treatment(video, scan, layout))
            if start_s > 0:
                after_seek = None
                if scan.kind != "telecine":  # its groups of five frames are counted from the beginning
                    after_seek = _seek(path, video, first.pts_s + start_s, on_skip, report)
                timed = after_seek or _from_start(path, on_skip, report)
            convert = layout.converter(short_side)
            for frame in to_progressive(scan, timed, video.interval_s or DEFAULT_INTERVAL_S):
                if frame.pts_s - first.pts_s >= end_s:
                    return
                if frame.pts_s - first.pts_s < start_s:
                    on_skip(frame.pts_s)
                    continue
                if layout.size != (frame.decoded.width, frame.decoded.height):
                    layout = Layout(frame.decoded, frame.pixel_aspect)
                    convert = layout.converter(short_side)
                yield Frame(frame.pts_s, convert(frame.decoded), frame.run)
    except VideoError as error:
        if first is not None and error.reason == "no_frames":
            raise VideoError("decode", "corrupt", error.detail) from error
        raise


def _intact(video: Video, on_skip: OnSkip = ignore, report: OnDamage = ignore) -> Iterator[TimedFrame]:
    """Yield the intact frames from the container's current position, PTS strictly increasing.

    Raises:
        VideoError: stage "decode", reason corrupt or no_frames: damage lasts to the end of the file.
    """
    timeline, damage = Timeline(video), DamageFilter(report)

    def lose(packet: av.Packet | None, error: str) -> None:
        damage.lose(timeline.packet_time_s(packet), error)

    for frame in timeline.place(decode_packets(video, lose)):
        if damage.shows(frame):
            yield frame
        else:
            on_skip(frame.pts_s)
    damage.finish()


def _examined(timed: Iterator[TimedFrame]) -> tuple[TimedFrame, Scan, Iterator[TimedFrame]]:
    """Return the first frame, the scan type by the first frames, and an iterator of all frames.

    Raises:
        VideoError: stage "decode", reason no_frames: there is none.
    """
    head, rest = _lookahead(timed, 1)
    if not head:
        next(rest, None)  # raises the error of the first frame, if any
        raise VideoError("decode", "no_frames", "the decoder reached the end without a timed frame")
    scan = Scan()
    if may_be_interlaced(head[0].decoded):
        more, rest = _lookahead(rest, FIRST_FRAMES - 1)
        head += more
        if shows_fields([frame.decoded for frame in head]):
            more, rest = _lookahead(rest, MOST_FRAMES - FIRST_FRAMES)
            head += more
            scan = detect_scan([frame.decoded for frame in head])
    return head[0], scan, itertools.chain(head, rest)


def _lookahead(source: Iterator[T], count: int) -> tuple[list[T], Iterator[T]]:
    """Return up to `count` items and the iterator of the remaining ones, which raises the error of `source` if any."""
    items: list[T] = []

    try:
        items.extend(itertools.islice(source, count))
    except (VideoError, av.FFmpegError, ValueError, MemoryError) as error:
        return items, _failing(error)
    return items, source


def _failing(error: Exception) -> Iterator[Any]:
    """Return an iterator that raises `error` at its first item."""
    yield from ()
    raise error


def _treatment(video: Video, scan: Scan, layout: Layout) -> Treatment:
    """Describe what decoding changes in the frames of a video."""
    notes = []
    if video.format in UNTIMED and video.interval_s:
        notes.append(f"no timestamps: {1 / video.interval_s:g} frames per second by the stream's header")
    if layout.turn_error_deg > MAX_TURN_ERROR_DEG:
        notes.append(f"display matrix {layout.turn_error_deg:.1f} degrees off the nearest right angle, which is used")
    cadence = "3:2" if scan.kind == "telecine" else ""
    return Treatment(deinterlaced=scan.kind == "interlaced", cadence=cadence, notes="; ".join(notes))


def _from_start(path: str | Path, on_skip: OnSkip, report: OnDamage) -> Iterator[TimedFrame]:
    """Open the file again and yield `_intact` from its beginning."""
    with open_video(path) as video:
        yield from _intact(video, on_skip, report)


def _seek(
    path: str | Path, video: Video, target_s: float, on_skip: OnSkip, report: OnDamage
) -> Iterator[TimedFrame] | None:
    """Seek to a key frame at or before `target_s` and return `_intact` from there; None if seeking fails."""
    if video.format in UNSEEKABLE:
        return None
    with open_video(path) as fresh:
        if restarts(fresh):
            return None
    try:
        offset = math.floor((target_s - PREROLL_S) / video.stream.time_base)
        video.container.seek(offset, stream=video.stream, backward=True)
        timed = _intact(video, on_skip, report)
        first = next(timed, None)
    except (VideoError, av.FFmpegError, ValueError, OverflowError):
        return None
    if first is None or first.pts_s > target_s:
        return None
    return itertools.chain([first], timed)


def backend_version(backend: str) -> str:
    """Return name and version of a backend and its FFmpeg libraries, for a dataset's provenance."""
    if backend == "decord":
        import decord

        return f"decord {decord.__version__} / FFmpeg 4.1"
    if backend == "pillow":
        return f"pillow {PIL.__version__}"
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__} / libavcodec {libavcodec}"
