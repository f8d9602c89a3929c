"""Presentation times of decoded frames: choice between PTS and DTS, missing times, times that restart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av

from vgan.video.decoding.containers import UNTIMED, Video

# A time that is earlier by more than this, or of another picture size, is that of another recording (joined files).
# Wrong times of one recording, from reordering, are off by a few frames: 16 of them take 0.64 s at 25 per second.
RESTART_S = 1.0


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A decoded frame with its time in seconds. A new `run` starts where times restart or the picture size changes.

    Times increase strictly, over runs too.
    """

    pts_s: float
    run: int
    decoded: av.VideoFrame
    pixel_aspect: Fraction | None  # width / height of a stored pixel


class Clock:
    """Presentation times from PTS and DTS, chosen as by FFmpeg's tools ("best effort timestamp").

    The decoder returns frames in order of presentation, so a time that does not increase is wrong. AVI stores no PTS:
    the values read count packets in coding order, which is wrong with B-frames (as in UCF101). A frame without a time,
    such as the last ones of these files, is placed `interval_s` after the preceding frame; in a format without times
    the first frame is at 0.
    """

    def __init__(self, video: Video) -> None:
        self.has_pts = video.format != "avi"
        self.interval_s = video.interval_s
        self._last_pts = self._last_dts = -math.inf
        self._pts_faults, self._dts_faults = 0 if self.has_pts else 1, 0
        self._known_s: float | None = None
        self._num_since = 0  # frames without a time since the one at _known_s
        if video.format in UNTIMED:
            self._known_s, self._num_since = 0.0, -1

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
        time_base = decoded.time_base
        if chosen is not None and time_base is not None:
            self._num_since = 0
            self._known_s = chosen * time_base.numerator / time_base.denominator  # a third of a Fraction's time
        elif self._known_s is not None and self.interval_s is not None:
            self._num_since += 1
            return self._known_s + self._num_since * self.interval_s
        return self._known_s


class Timeline:
    """Strictly increasing times over a whole file; times that restart continue one second after the last ones.

    A single time that is too early is an error of the file, and its frame is dropped; two in a row start a new run.
    """

    def __init__(self, video: Video) -> None:
        self._clock = Clock(video)
        self._stream = video.stream
        self._offset_s = 0.0  # between the times of the file and those of the timeline
        self._last_s = -math.inf
        self._run = 0
        self._size: tuple[int, int] | None = None
        self._pixel_aspect = video.stream.sample_aspect_ratio

    def packet_time_s(self, packet: av.Packet | None) -> float | None:
        """Return the presentation time of an undecoded packet in seconds, None if it is unknown."""
        if packet is None or packet.pts is None or packet.time_base is None or not self._clock.has_pts:
            return None
        return float(packet.pts * packet.time_base) + self._offset_s

    def place(self, decoded_frames: Iterator[av.VideoFrame]) -> Iterator[TimedFrame]:
        """Yield the frames that have a valid time."""
        early: tuple[float, av.VideoFrame] | None = None  # a frame that may start a run, and its own time
        for decoded in decoded_frames:
            own_s = self._clock.time_s(decoded)
            if own_s is None:
                continue
            if early is not None and early[0] < own_s <= self._last_s - self._offset_s:
                self._offset_s = self._last_s + RESTART_S - early[0]
                yield self._timed(*early, restarted=True)
            early = None
            if own_s + self._offset_s > self._last_s:
                yield self._timed(own_s, decoded)
            elif own_s + self._offset_s < self._last_s - RESTART_S or self._size != (decoded.width, decoded.height):
                early = own_s, decoded

    def _timed(self, own_s: float, decoded: av.VideoFrame, restarted: bool = False) -> TimedFrame:
        """Build the frame at its own time plus the offset; count a run if times restart or the size changes."""
        size = (decoded.width, decoded.height)
        resized = self._size not in (None, size)
        self._run += restarted or resized
        if resized:
            self._pixel_aspect = self._stream.codec_context.sample_aspect_ratio
        self._size = size
        self._last_s = own_s + self._offset_s
        return TimedFrame(self._last_s, self._run, decoded, self._pixel_aspect)


def restarts(video: Video) -> bool:
    """Return True if times of a freshly opened MPEG file restart; reads all packets, without decoding them.

    Seeking by time is wrong in such a file. Other containers have an index of the whole file.
    """
    if video.format not in ("mpeg", "mpegts"):
        return False
    times = (packet.dts for packet in video.container.demux(video.stream) if packet.dts is not None)
    return any((before - after) * video.stream.time_base > RESTART_S for before, after in itertools.pairwise(times))
