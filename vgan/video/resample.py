"""Resampling to a fixed frame rate by presentation time; an integer stride could turn 30 fps only into 30 or 15 fps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from itertools import pairwise

from vgan.errors import VideoError
from vgan.video.decode import Frame

PROBE = 25  # number of frames that the source's rate is measured on: one second of most videos
RATE_TOLERANCE = 0.99  # NTSC's 14.985 counts as 15
TIE_S = 1e-6  # target times up to this much after the midpoint of two frames count as the midpoint


def resample(source: Iterable[Frame], fps: float, max_gap_s: float, min_fps: float) -> Iterator[tuple[int, Frame]]:
    """Yield (run, frame) at `fps` frames per second; frames are objects of `source`, with their original PTS.

    The frame for target time start + i / fps is the nearest in time, the earlier of two at equal distance. Compared to
    the latest displayed frame, this halves the maximum timing error, and it does not double or drop frames if a
    container rounds times to milliseconds. A gap above `max_gap_s` ends the run: the next frame starts run + 1 with a
    new time grid.

    Raises:
        VideoError: stage "decode", reason low_frame_rate if the median rate of the first frames is below `min_fps`,
            before the first frame is yielded; and errors of `source`, after its preceding frames were yielded.
    """
    run, index, start_s = 0, 0, 0.0  # of the next target time
    last: Frame | None = None  # covers target times up to the midpoint to its successor
    for frame in _rate_checked(iter(source), min_fps):
        if last is None:
            start_s = frame.pts_s
        else:
            gap = frame.pts_s - last.pts_s > max_gap_s
            end_s = last.pts_s + 0.5 / fps if gap else (last.pts_s + frame.pts_s) / 2
            while start_s + index / fps <= end_s + TIE_S:
                yield run, last
                index += 1
            if gap:
                run, index, start_s = run + 1, 0, frame.pts_s
        last = frame
    while last is not None and start_s + index / fps <= last.pts_s + 0.5 / fps:
        yield run, last
        index += 1


def _rate_checked(source: Iterator[Frame], min_fps: float) -> Iterator[Frame]:
    """Yield the frames of `source` after a check that the rate of the first PROBE is at least `min_fps`."""
    probe: list[Frame] = []
    error: VideoError | None = None
    try:
        for frame in source:
            probe.append(frame)
            if len(probe) == PROBE:
                break
    except VideoError as early_error:
        error = early_error  # the frames before it are valid
    if len(probe) > 1:
        interval_s = statistics.median(later.pts_s - earlier.pts_s for earlier, later in pairwise(probe))
        if interval_s * min_fps * RATE_TOLERANCE > 1:
            detail = f"{1 / interval_s:.2f} frames per second; at least {min_fps:g}"
            raise VideoError("decode", "low_frame_rate", detail)
    yield from probe
    if error is not None:
        raise error
    yield from source
