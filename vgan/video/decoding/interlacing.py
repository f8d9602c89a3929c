"""Interlaced and telecined video: detection on the first frames, and conversion to progressive frames by FFmpeg."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from vgan.video.decoding.timestamps import TimedFrame

MAX_LINES = 1088  # higher pictures are always progressive
MIN_SIDE = 64  # pixels
FIRST_FRAMES = 12  # frames that are examined in every video
MOST_FRAMES = 100  # frames that are examined if these, or the decoder's flags, show two fields
# Measured on the first 64 frames of 124 files (generic, shaky, odd; every fourth of UCF101's first clips, every eighth
# of JHMDB), progressive and, by weaving adjacent frames, interlaced. At idet's default ratio of 1.04 six progressive
# ones (all test patterns) are taken for interlaced and 115 woven ones are found, at 1.1 five and 114, at 1.2 none and
# 108 (the others show nearly no motion), at 1.5 none and 81.
FIELD_RATIO = 1.2
MIN_WOVEN = 8  # frames
MIN_WOVEN_SHARE = 0.6  # of the frames for which the filter decides; 0.2 to 0.6 give the same result
CYCLE = 5  # frames in which telecine repeats each field once
MAX_REPEAT_RATIO = 0.3  # of the difference of a repeated field to that of the other one
MIN_FIELD_DIFFERENCE = 0.5  # of the other field, 0..255; less is noise
MIN_CYCLE_SHARE = 0.5  # of the cycles that show the repeats of telecine; it breaks at cuts and where nothing moves
MIN_CYCLES = 2
FILM_RATIO = 1.25  # five frames of telecined video are four of film
TIME_BASE = Fraction(1, 10**6)  # of frames in a filter


@dataclass(frozen=True, slots=True)
class Scan:
    """Scan type: the way in which a video's frames were recorded.

    Progressive frames show one moment. Interlaced ones show two, in alternate lines (fields). Telecined ones are film
    at 24 frames per second, four frames of which fill ten fields (3:2 pulldown), two of every five frames woven.
    """

    kind: str = "progressive"  # progressive, interlaced or telecine
    parity: str = "auto"  # the field shown first: tff (top), bff (bottom), auto (as each frame is flagged)


def flagged(frames: Iterable[av.VideoFrame]) -> bool:
    """Return True if the decoder marked any frame as interlaced."""
    return any(frame.interlaced_frame for frame in frames)


def may_be_interlaced(first: av.VideoFrame) -> bool:
    """Return True if pictures of this size and pixel format can be interlaced."""
    small_enough = first.height <= MAX_LINES and min(first.height, first.width) >= MIN_SIDE
    return small_enough and first.format.is_planar and not first.format.is_rgb


def shows_fields(frames: Sequence[av.VideoFrame]) -> bool:
    """Return True if a few frames give a reason to examine more of them, by `detect_scan`."""
    if flagged(frames) or telecine_parity(frames):
        return True
    counts = _field_counts(frames, "iw/4")
    return counts["tff"] + counts["bff"] > 1


def detect_scan(frames: Sequence[av.VideoFrame]) -> Scan:
    """Detect the scan type of a video from its first frames.

    Interlacing is decided by FFmpeg's filter idet, and by the decoder's flags only if the picture stands still:
    progressive film is often flagged, and woven fields encoded as progressive are not.
    """
    if parity := telecine_parity(frames):
        return Scan("telecine", parity)
    counts = _field_counts(frames, "iw/2")
    woven, progressive = counts["tff"] + counts["bff"], counts["progressive"]
    if woven + progressive < MIN_WOVEN:
        return Scan("interlaced") if flagged(frames) else Scan()
    if woven >= MIN_WOVEN and woven >= MIN_WOVEN_SHARE * (woven + progressive):
        return Scan("interlaced", "tff" if counts["tff"] >= counts["bff"] else "bff")
    return Scan()


def telecine_parity(frames: Sequence[av.VideoFrame]) -> str | None:
    """Return tff or bff if one field is repeated in every fifth frame, and the other one two frames later, else None.

    Hard telecine shows film frames A B C D as AA BB BC CD DD (top and bottom field): B's top field and D's bottom field
    are repeated. With the bottom field first it is the reverse.
    """
    differences = _field_differences(frames)
    repeats = differences < MAX_REPEAT_RATIO * differences[:, ::-1]
    repeats &= differences[:, ::-1] > MIN_FIELD_DIFFERENCE
    num_cycles = len(repeats) // CYCLE
    repeats = repeats[: num_cycles * CYCLE]
    cycles = repeats.reshape(num_cycles, CYCLE, 2).sum(axis=0)  # by phase and field
    for parity, first, second in (("tff", 0, 1), ("bff", 1, 0)):
        # The number of cycles that repeat the first field in a phase, and the second field two frames later.
        hits = np.minimum(cycles[:, first], np.roll(cycles[:, second], -2))
        if hits.max() >= max(MIN_CYCLES, MIN_CYCLE_SHARE * num_cycles) and 2 * hits.max() > 0.8 * repeats.sum():
            return parity
    return None


def _field_differences(frames: Sequence[av.VideoFrame]) -> np.ndarray:
    """Return the mean absolute differences (T - 1, 2) of adjacent frames in the top and in the bottom field.

    Every eighth line of a field is compared, in luma of 8 bits; other pixel formats give zeros.
    """
    first = frames[0]
    differences = np.zeros((max(0, len(frames) - 1), 2))
    before: list[np.ndarray] | None = None
    for index, frame in enumerate(frames):
        if (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name):
            break
        if frame.format.components[0].bits != 8:
            break
        plane = frame.planes[0]
        luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        fields = [luma[parity::16].astype(np.int16) for parity in (0, 1)]
        if before is not None:
            differences[index - 1] = [np.abs(x - y).mean() for x, y in zip(fields, before, strict=True)]
        before = fields
    return differences


def _field_counts(frames: Sequence[av.VideoFrame], width: str) -> dict[str, float]:
    """Return idet's counts of frames by name, from the middle of the picture; its time grows with `width`."""
    first = frames[0]
    graph = FilterGraph(first, [("crop", f"{width}:ih"), ("idet", f"intl_thres={FIELD_RATIO}")], Fraction(25))
    metadata: dict[str, str] = {}
    alike = [f for f in frames if (f.width, f.height, f.format.name) == (first.width, first.height, first.format.name)]
    for frame in [*alike, None]:
        for examined in graph.outputs(frame):
            metadata = examined.metadata
    return {name: float(metadata.get(f"lavfi.idet.single.{name}", 0)) for name in ("tff", "bff", "progressive")}


def to_progressive(scan: Scan, frames: Iterable[TimedFrame], interval_s: float) -> Iterator[TimedFrame]:
    """Convert frames to progressive ones, at the same times; telecined film to its own 24 frames per second.

    Args:
        scan: result of `detect_scan`.
        frames: decoded frames.
        interval_s: interval between frames, seconds.
    """
    if scan.kind == "progressive":
        yield from frames
        return
    telecine = scan.kind == "telecine"
    deinterlace = f"mode=send_frame:parity={scan.parity}:deint={'all' if scan.parity != 'auto' else 'interlaced'}"
    chain = [("bwdif", deinterlace)]
    if telecine:
        leftover = "mode=send_frame:deint=interlaced"
        chain = [("fieldmatch", f"order={scan.parity}"), ("bwdif", leftover), ("decimate", "")]
    # `decimate` counts frames and does not read their times, so that a new graph is made after a missing frame.
    max_step_s = 1.5 * interval_s if telecine else math.inf
    stretch: _Stretch | None = None
    for frame in frames:
        if stretch is None or frame.run != stretch.run or frame.pts_s - stretch.last_s > max_step_s:
            if stretch is not None:
                yield from stretch.outputs(None)
            graph = FilterGraph(frame.decoded, chain, Fraction(1 / interval_s).limit_denominator(1001))
            stretch = _Stretch(graph, frame, FILM_RATIO * interval_s if telecine else None)
        yield from stretch.outputs(frame)
    if stretch is not None:
        yield from stretch.outputs(None)


class _Stretch:
    """Filtered frames of one stretch without gaps, with even times from its start if `interval_s` is given."""

    def __init__(self, graph: FilterGraph, first: TimedFrame, interval_s: float | None) -> None:
        self.run, self.last_s = first.run, first.pts_s
        self._graph, self._first, self._interval_s = graph, first, interval_s
        self._num_frames = 0

    def outputs(self, frame: TimedFrame | None) -> Iterator[TimedFrame]:
        """Yield the frames that are ready after the next frame, or after the last one if it is None."""
        if frame is not None:
            self.last_s = frame.pts_s
            frame.decoded.pts, frame.decoded.time_base = round(frame.pts_s / TIME_BASE), TIME_BASE
        for filtered in self._graph.outputs(frame and frame.decoded):
            pts_s = float(filtered.pts * filtered.time_base)
            if self._interval_s is not None:
                pts_s = self._first.pts_s + self._num_frames * self._interval_s
            self._num_frames += 1
            yield replace(self._first, pts_s=pts_s, decoded=filtered)


class FilterGraph:
    """A chain of FFmpeg's filters for frames like the first one, on one thread.

    Args:
        first: a frame.
        chain: name and arguments of each filter.
        rate: frames per second.
    """

    def __init__(self, first: av.VideoFrame, chain: Sequence[tuple[str, str]], rate: Fraction) -> None:
        self._graph = Graph()
        self._graph.threads = 1
        form = f"video_size={first.width}x{first.height}:pix_fmt={first.format.name}"
        source = self._graph.add("buffer", f"{form}:time_base={TIME_BASE}:frame_rate={rate}")
        filters = [self._graph.add(name, arguments or None) for name, arguments in chain]
        self._graph.link_nodes(source, *filters, self._graph.add("buffersink")).configure()

    def outputs(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Filter the next frame, None for the end, and yield the frames that are ready."""
        self._graph.vpush(frame)
        while True:
            try:
                filtered = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(filtered, av.VideoFrame)
            yield filtered
