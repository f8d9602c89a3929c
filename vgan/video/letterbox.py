"""Detection and cropping of bars of one color in a window of frames; a GAN would learn the bars as a pattern."""

from __future__ import annotations

import numpy as np

# Maximum difference of a bar from its color, 0..255: in UCF101 black bars are below 44, with compression noise and the
# scaler's ringing.
DARK = 48
FLAT = 6.0  # maximum standard deviation of a bar's mean over time, 0..255; the largest measured in a true bar is 4
STEP = 8.0  # minimum step in brightness from bar to picture, 0..255, at most pixels of the edge
SURE = 0.6  # minimum share of the edge's pixels with a step; black curtains and night skies reach 0.4, bars 0.63 to 1
LIKELY = 0.25  # the same if the opposite bar passes SURE at that depth: dark scenes hide half of an edge
UNEVEN = 2  # maximum difference of opposite bars, pixels
THIN = 4  # maximum depth of a bar on one side only, pixels: captured analog film has such black lines
DEEPEST = 0.4  # maximum depth of a bar, as share of the picture


def detect_bars(frames: np.ndarray) -> tuple[int, int, int, int]:
    """Detect the bars of `frames` (T, H, W, 3) uint8: depths (top, bottom, left, right) in pixels, 0 for no bar.

    A black bar is dark in every frame, uniform in space and time, and ends in a straight edge after which most of the
    picture is brighter. Bars deeper than THIN must occur in pairs. Therefore a dark sky, a dark stage and a black
    picture are not cropped. Pairs of bars of another color are detected by their difference from it. A row in which the
    scaler mixed bar and picture counts as bar. Bars that contain a logo, subtitles or a blurred copy of the picture are
    not detected.
    """
    highest, mean = frames.max(0), frames[::4].mean(0, dtype=np.float32)
    top, bottom = _opposite_bars(frames, highest, mean)
    rows = slice(top, len(mean) - bottom)
    left, right = _opposite_bars(
        frames[:, rows].swapaxes(1, 2), highest[rows].swapaxes(0, 1), mean[rows].swapaxes(0, 1)
    )
    return top, bottom, left, right


def crop(frames: np.ndarray, depths: tuple[int, int, int, int]) -> np.ndarray:
    """Return a view of `frames` (T, H, W, 3) without `depths` = (top, bottom, left, right) pixels."""
    top, bottom, left, right = depths
    height, width = frames.shape[1:3]
    return frames[:, top : height - bottom, left : width - right]


def _opposite_bars(frames: np.ndarray, highest: np.ndarray, mean: np.ndarray) -> tuple[int, int]:
    """Return the depths of the bars at the first and the last rows, pixels.

    Args:
        frames: (T, H, W, 3) uint8.
        highest: their maximum over time, (H, W, 3).
        mean: their mean over time, (H, W, 3).
    """
    depths = _pair(highest.max(-1), mean.mean(-1))
    edges = mean[[0, -1]]
    color = np.median(edges, (0, 1))
    if any(depths) or color.max() <= DARK or np.abs(edges - color).max() > DARK:
        return depths
    difference = np.maximum(highest - color, color - frames.min(0)).max(-1)
    depths = _pair(difference, np.abs(mean - color).mean(-1))
    return depths if all(depths) else (0, 0)


def _pair(brightest: np.ndarray, mean: np.ndarray) -> tuple[int, int]:
    """Return the depths of the bars at the first and the last rows, pixels.

    Args:
        brightest: maximum over time and channels, (H, W), 0..255; of the difference from a bar's color unless black.
        mean: mean over time and channels, (H, W), 0..255; of the same.
    """
    deepest = int(DEEPEST * len(mean))
    sides = (brightest, mean), (brightest[::-1], mean[::-1])
    first, last = (_depth(*side, SURE, range(1, deepest + 1)) for side in sides)
    for_last, for_first = (range(max(1, d - UNEVEN), min(deepest, d + UNEVEN) + 1) for d in (first, last))
    if first and not last:
        last = _depth(*sides[1], LIKELY, for_last)
    if last and not first:
        first = _depth(*sides[0], LIKELY, for_first)
    if first and last:
        return first, last
    return (first if first <= THIN else 0), (last if last <= THIN else 0)


def _depth(brightest: np.ndarray, mean: np.ndarray, edge: float, depths: range) -> int:
    """Return the depth of the bar at the first rows, pixels, with a mixed row if any; 0 without a bar.

    Args:
        brightest: maximum over time and channels, (H, W), 0..255.
        mean: mean over time and channels, (H, W), 0..255.
        edge: minimum share of pixels with a step in brightness at the end of the bar, 0..1.
        depths: candidate depths, pixels, in increasing order.
    """
    # A few pixels may be brighter: compression noise at the edge between bar and picture.
    dark = np.percentile(brightest[: depths.stop], 97, axis=1) <= DARK
    run = len(dark) if dark.all() else int(dark.argmin())
    for depth in reversed(depths):
        if depth > run or mean[:depth].std() > FLAT:
            continue
        level = np.median(mean[depth - 1]) + STEP
        if (mean[depth + 1] > level).mean() >= edge:
            mixed = (mean[depth + 1] > mean[depth] + STEP).mean() >= edge
            return depth + int(mixed)
    return 0
