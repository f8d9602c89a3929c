"""Resampling to a fixed frame rate by presentation time; an integer stride could turn 30 fps only into 30 or 15 fps."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from vgan.errors import VideoError
from vgan.video.decoding.decode import Frame

PROBE = 25  # number of frames that the source's rate is measured on: one second of most videos
MAX_SLOW_START_S = 60.0  # after that much below the minimum rate decoding the rest is not worth its cost
RATE_TOLERANCE = 0.99  # NTSC's 14.985 counts as 15
TIE_S = 1e-6  # target times up to this much after the midpoint of two frames count as the midpoint


def resample(
    source: Iterable[Frame],
    fps: float,
    max_gap_s: float,
    min_fps: float,
    on_slow_start: Callable[[float, str], None] = lambda _start_s, _detail: None,
) -> Iterator[tuple[int, Frame]]:
    """Yield (run, frame) at `fps` frames per second; frames are objects of `source`, with their original PTS.

    The frame for target time start + i / fps is the nearest in time, the earlier of two at equal distance. Compared to
    the latest displayed frame, this halves the maximum timing error, and it does not double or drop frames if a
    container rounds times to milliseconds. A gap above `max_gap_s`, or a new run of `source`, ends the run: the next
    frame starts run + 1 with a new time grid.

    A beginning below `min_fps` is skipped; `on_slow_start` is called with its start in seconds and a description.

    Raises:
        VideoError: stage "decode", reason low_frame_rate if the rate is below `min_fps` to the end, or for
            MAX_SLOW_START_S, before the first frame is yielded; and errors of `source`, after its preceding frames were
            yielded.
    """
    run, index, start_s = 0, 0, 0.0  # of the next target time
    last: Frame | None = None  # covers target times up to the midpoint to its successor
    for frame in _skip_slow_start(iter(source), min_fps, on_slow_start):
        if last is None:
            start_s = frame.pts_s
        else:
            gap = frame.pts_s - last.pts_s > max_gap_s or frame.run != last.run
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


def _skip_slow_start(
    source: Iterator[Frame], min_fps: float, on_slow_start: Callable[[float, str], None]
) -> Iterator[Frame]:
    """Yield the frames of `source` from the first PROBE ones on whose median rate is at least `min_fps`."""
    max_interval_s = 1 / (min_fps * RATE_TOLERANCE)
    recent: deque[Frame] = deque(maxlen=PROBE)
    first_s: float | None = None
    slow_fps = 0.0
    error: VideoError | None = None
    while True:
        try:
            frame = next(source, None)
        except VideoError as early_error:
            frame, error = None, early_error  # the frames before it are valid
        if frame is not None:
            first_s = frame.pts_s if first_s is None else first_s
            recent.append(frame)
            if len(recent) < PROBE:
                continue
        interval_s = statistics.median(_intervals_s(recent)) if len(recent) > 1 else 0.0
        if interval_s <= max_interval_s:
            break
        slow_fps = slow_fps or 1 / interval_s
        if frame is None or frame.pts_s - (first_s or 0.0) > MAX_SLOW_START_S:
            detail = f"{1 / interval_s:.2f} frames per second; at least {min_fps:g}"
            raise VideoError("decode", "low_frame_rate", detail)
    if slow_fps:
        while recent[1].pts_s - recent[0].pts_s > max_interval_s:
            recent.popleft()
        assert first_s is not None
        on_slow_start(
            first_s, f"{slow_fps:.2f} frames per second for {recent[0].pts_s - first_s:.2f} s; at least {min_fps:g}"
        )
    yield from recent
    if error is not None:
        raise error
    yield from source


def _intervals_s(frames: Iterable[Frame]) -> list[float]:
    """List the intervals between frames, seconds."""
    return [later.pts_s - earlier.pts_s for earlier, later in pairwise(frames)]
