"""Frames of any timing become frames at a fixed rate, chosen by time: a whole stride makes 30 a second 30 or 15."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from itertools import pairwise

from vgan.errors import BadVideo
from vgan.video.decode import Frame

PROBE = 25  # frames the source's rate is measured over: one second of most videos
RATE_TOLERANCE = 0.99  # NTSC's 14.985 counts as 15
TIE_S = 1e-6  # target times this much past the middle between two frames still count as the middle


def resample(source: Iterable[Frame], fps: float, max_gap_s: float, min_fps: float) -> Iterator[tuple[int, Frame]]:
    """(run, frame) at `fps` frames a second; the frames are the source's own objects, with their own PTS.

    The frame for target time start + i / fps is the nearest in time, the earlier of two equally near. That halves the
    worst timing error of "the latest shown", and does not double or drop frames where a container rounds times to
    milliseconds. A gap above `max_gap_s` ends the run: the next frame starts run + 1 with a time grid of its own.

    Raises:
        BadVideo: decode, low_frame_rate, when the first frames come slower than `min_fps` (median), before any frame is
            given; and whatever `source` raises, after the frames before it were given.
    """
    run, index, start_s = 0, 0, 0.0  # of the next target
    held: Frame | None = None  # the latest frame seen: targets up to half way to its successor are its own
    for frame in _rate_checked(iter(source), min_fps):
        if held is None:
            start_s = frame.pts_s
        else:
            gap = frame.pts_s - held.pts_s > max_gap_s
            end_s = held.pts_s + 0.5 / fps if gap else (held.pts_s + frame.pts_s) / 2
            while start_s + index / fps <= end_s + TIE_S:
                yield run, held
                index += 1
            if gap:
                run, index, start_s = run + 1, 0, frame.pts_s
        held = frame
    while held is not None and start_s + index / fps <= held.pts_s + 0.5 / fps:
        yield run, held
        index += 1


def _rate_checked(source: Iterator[Frame], min_fps: float) -> Iterator[Frame]:
    """`source` itself, once its first frames have shown that it is not slower than `min_fps`."""
    probe: list[Frame] = []
    fault: BadVideo | None = None
    try:
        for frame in source:
            probe.append(frame)
            if len(probe) == PROBE:
                break
    except BadVideo as early_fault:
        fault = early_fault  # the frames before it are good
    if len(probe) > 1:
        interval_s = statistics.median(later.pts_s - earlier.pts_s for earlier, later in pairwise(probe))
        if interval_s * min_fps * RATE_TOLERANCE > 1:
            detail = f"{1 / interval_s:.2f} frames a second; at least {min_fps:g}"
            raise BadVideo("decode", "low_frame_rate", detail)
    yield from probe
    if fault is not None:
        raise fault
    yield from source
