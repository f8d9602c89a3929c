"""Low-cost tests of a window on 64 px gray thumbnails, before its camera motion is estimated."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.video.config import PrescreenConfig

SIDE = 64  # pixels
EQUAL = 1.0  # maximum difference of equal thumbnails at any pixel, 0..255: the rounding error
# A repeated frame that was re-encoded is not equal but changes much less than other frames. In videos with every frame
# repeated once, 0.35 to 0.5 of the frames count as frozen (median, H.264 at crf 28 to MPEG-4); with a bound of 0.2 this
# is also the case for 5 % of normal windows.
STANDSTILL = 0.1  # maximum change of a frozen frame, as share of the upper quartile of the window's changes


@dataclass(frozen=True, kw_only=True)
class WindowStatistics:
    """Statistics of the thumbnails of a window."""

    contrast: float  # standard deviation of gray values, mean over frames, 0..255
    frozen_fraction: float  # share of frames that repeat the preceding one while others change, 0..1
    activity: float  # mean absolute difference of adjacent frames, 0..255; includes camera motion


def measure_window(frames: np.ndarray) -> WindowStatistics:
    """Measure the distinct frames (T, H, W, 3) uint8 of a window.

    The caller must omit frames that were repeated by the resampling to a fixed rate: a slower source is no defect.
    """
    thumbnails = np.stack(
        [cv2.cvtColor(cv2.resize(f, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for f in frames]
    )
    if len(thumbnails) < 2:
        return WindowStatistics(contrast=float(thumbnails.std()), frozen_fraction=0.0, activity=0.0)
    pixels = np.abs(np.diff(thumbnails.astype(np.int16), axis=0))  # (T - 1, SIDE, SIDE)
    change = pixels.mean((1, 2))
    frozen = (pixels.max((1, 2)) <= EQUAL) | (change <= STANDSTILL * np.percentile(change, 75))
    return WindowStatistics(
        contrast=float(thumbnails.std((1, 2)).mean()),
        frozen_fraction=float(frozen.mean()),
        activity=float(change.mean()),
    )


def reject_window(statistics: WindowStatistics, config: PrescreenConfig) -> None:
    """Raise VideoError if a bound is violated: stage "screen", reason black, static or frozen; 0 disables a bound."""
    if statistics.contrast < config.min_contrast:
        raise VideoError("screen", "black", f"contrast {statistics.contrast:.2f}; at least {config.min_contrast:g}")
    if statistics.activity < config.min_activity:
        raise VideoError("screen", "static", f"activity {statistics.activity:.3f}; at least {config.min_activity:g}")
    if config.max_frozen_fraction and statistics.frozen_fraction > config.max_frozen_fraction:
        raise VideoError(
            "screen",
            "frozen",
            f"{statistics.frozen_fraction:.2f} of the frames; at most {config.max_frozen_fraction:g}",
        )
