"""Black bars around the picture: found in a window of frames and cut off, for a GAN would learn them as a pattern."""

from __future__ import annotations

import numpy as np

DARK = 48  # 0..255: bars of UCF101 stay below 44 in all frames, compression noise and the scaler's ringing included
FLAT = 6.0  # standard deviation of a bar's mean over time; the widest seen in a true bar is 4
STEP = 8.0  # 0..255: what the picture is brighter by than the bar, in most places along the edge
SURE = 0.6  # share of the edge's pixels that step up; black curtains and night skies reach 0.4, bars 0.63 to 1
LIKELY = 0.25  # the same where the opposite side has a sure bar of that depth: dark scenes hide half of an edge
UNEVEN = 2  # pixels: opposite bars differ by no more
THIN = 4  # pixels: captured analog film has black lines so deep on one side only
DEEPEST = 0.4  # share of the picture that a bar can take from one side


def bars(frames: np.ndarray) -> tuple[int, int, int, int]:
    """Depth in pixels of the black bars of `frames` (T, H, W, 3) uint8: (top, bottom, left, right), 0 for no bar.

    A bar is dark in every frame, flat in space and time, and ends in a straight edge beyond which most of the picture
    is brighter. Bars deeper than THIN come in pairs. So a dark sky, a dark stage and a black picture are left alone.
    A row in which the scaler mixed bar and picture counts as bar. Bars with a logo or subtitles in them are not found.
    """
    brightest = frames.max(0).max(-1)  # (H, W)
    mean = frames[::4].mean(0, dtype=np.float32).mean(-1)
    top, bottom = _pair(brightest, mean)
    rows = slice(top, len(mean) - bottom)
    left, right = _pair(brightest[rows].T, mean[rows].T)
    return top, bottom, left, right


def crop(frames: np.ndarray, depths: tuple[int, int, int, int]) -> np.ndarray:
    """`frames` (T, H, W, 3) without `depths` = (top, bottom, left, right) pixels; a view."""
    top, bottom, left, right = depths
    height, width = frames.shape[1:3]
    return frames[:, top : height - bottom, left : width - right]


def _pair(brightest: np.ndarray, mean: np.ndarray) -> tuple[int, int]:
    """Depths of the bars at the first and at the last rows of two images (H, W): maximum and mean over time, 0..255."""
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
    """The largest of `depths` at which a bar at the first rows ends in an edge, plus one for a mixed row; 0 if none."""
    # A few pixels may be brighter: specks of compression noise where the bar meets the picture.
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
