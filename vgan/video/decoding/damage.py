"""Pictures that cannot be right: those after lost packets, up to the next key frame."""

from __future__ import annotations

from collections.abc import Callable

from vgan.errors import VideoError
from vgan.records import Reject
from vgan.video.decoding.timestamps import TimedFrame


class DamageFilter:
    """Filter that withholds the pictures after damage until the next intact key frame, and reports each damage.

    A decoder continues with whatever it has in the place of a lost picture, and its later pictures repeat that: in a
    film whose 10 of 250 frames of one group of pictures were lost, 225 more differed from the original by 20 to 40
    gray levels, without any mark by the decoder.

    Args:
        on_reject: called with a Reject (decode, damaged) for each damage after which an intact key frame follows.
    """

    def __init__(self, on_reject: Callable[[Reject], None]) -> None:
        self._on_reject = on_reject
        self._since_s: float | None = None  # the earliest lost time of the current damage
        self._num_lost = 0
        self._shown_s: float | None = None
        self._error = ""

    def lose(self, time_s: float | None, error: str) -> None:
        """Record a lost packet: its presentation time, None if that is unknown, and the decoder's error."""
        self._error = error
        last_s = self._shown_s if self._shown_s is not None else -1e-6
        lost_s = last_s + 1e-6 if time_s is None else time_s
        self._since_s = lost_s if self._since_s is None else min(self._since_s, lost_s)
        self._num_lost += 1

    def shows(self, frame: TimedFrame) -> bool:
        """Return True if the next frame, in order of presentation, is intact."""
        decoded = frame.decoded
        if decoded.is_corrupt:
            self.lose(frame.pts_s, "errors concealed by the decoder")
            return False
        if self._since_s is not None and frame.pts_s >= self._since_s:
            if not decoded.key_frame:
                self._num_lost += 1
                return False
            self._end(frame.pts_s)
        self._shown_s = frame.pts_s
        return True

    def _end(self, end_s: float) -> None:
        """Report the current damage, which ends at a key frame."""
        assert self._since_s is not None
        detail = f"{self._num_lost} frames lost before the key frame at {end_s:.3f} s"
        self._on_reject(Reject(start_s=self._since_s, stage="decode", reason="damaged", detail=detail))
        self._since_s, self._num_lost = None, 0

    def finish(self) -> None:
        """Raise the error of damage that lasts to the end of the file.

        Raises:
            VideoError: stage "decode", reason corrupt (frames before the damage are valid) or no_frames.
        """
        if self._since_s is not None:
            lost = f"{self._num_lost} frames lost to the end; {self._error}"
            raise VideoError("decode", "corrupt" if self._shown_s is not None else "no_frames", lost)
