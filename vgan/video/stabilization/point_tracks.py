"""Points spread over the picture, their tracks from frame to frame, and the burnt-in graphics that they must avoid."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

CELL_PX, PER_CELL = 24, 4  # cells of the picture, pixels at 128 px short side, and points per cell
MIN_CORNER = 2e-4  # smaller eigenvalue of cv2.cornerMinEigenVal, for 8-bit images; weaker corners are noise
LK_WINDOW, LK_LEVELS = 9, 3  # 9 is the fastest window (SIMD), 7 and 11 are no better; three levels follow 20 px
LK_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.02)
MAX_RETURN_PX = 0.5  # maximum distance of a point tracked there and back, pixels

STILL_RANGE = 8  # maximum range of gray values of a still pixel over a window: compression noise
EDGE = 3.0  # minimum gradient of a textured pixel, gray values per pixel
# Less still texture than this are single pixels; with more, the camera stood still.
MIN_OVERLAY, MAX_OVERLAY = 0.02, 0.8


def spread_corners(gray: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """Find corners, the strongest PER_CELL of each cell, so that no textured part of the picture dominates a fit.

    Corners are detected at half size: tracking measures their motion at full size, whatever their exact position.

    Args:
        gray: image (H, W) uint8.
        excluded: pixels (H // 2, W // 2) bool of the half-size image without corners, or None.

    Returns:
        Points (N, 2) float32, (x, y) in pixels of `gray`.
    """
    half = halve(gray)
    strength = cv2.cornerMinEigenVal(half, 3)
    is_peak = (strength >= MIN_CORNER) & (strength == cv2.dilate(strength, np.ones((5, 5), np.uint8)))
    is_peak[[0, 1, -2, -1]] = is_peak[:, [0, 1, -2, -1]] = False
    if excluded is not None:
        is_peak &= ~excluded
    y, x = np.nonzero(is_peak)
    strongest = np.argsort(-strength[y, x], kind="stable")
    y, x = y[strongest], x[strongest]
    cell_px = max(2, round(CELL_PX * min(half.shape) / 128))
    cell = (y // cell_px) * half.shape[1] + x // cell_px
    by_cell = np.argsort(cell, kind="stable")  # within a cell the strongest comes first
    starts = np.flatnonzero(np.diff(cell[by_cell], prepend=-1))
    rank = np.arange(len(cell)) - np.repeat(starts, np.diff(starts, append=len(cell)))
    chosen = by_cell[rank < PER_CELL]
    scale = gray.shape[0] / half.shape[0]
    return ((np.stack([x[chosen], y[chosen]], axis=1) + 0.5) * scale - 0.5).astype(np.float32)


def halve(gray: np.ndarray) -> np.ndarray:
    """Return the half-size image (H // 2, W // 2) of `gray` (H, W) uint8."""
    return cv2.resize(gray, (gray.shape[1] // 2, gray.shape[0] // 2), interpolation=cv2.INTER_AREA)


def track(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Track points by pyramidal Lucas-Kanade forward, and back to test the result.

    Back, the search starts at the point itself and at full size: as good a test as a search of all sizes, in 0.4 of its
    time.

    Args:
        before: earlier image (H, W) uint8.
        after: later image (H, W) uint8.
        points: (N, 2) float32 in `before`.

    Returns:
        Positions (N, 2) float32 in `after`, and (N,) bool: found there and back, and within the image.
    """
    options: dict[str, Any] = {"winSize": (LK_WINDOW, LK_WINDOW), "criteria": LK_STOP}
    forward, forward_status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, maxLevel=LK_LEVELS, **options)
    options |= {"flags": cv2.OPTFLOW_USE_INITIAL_FLOW, "maxLevel": 0}
    back, back_status, _ = cv2.calcOpticalFlowPyrLK(after, before, forward, points.copy(), **options)
    height, width = after.shape
    inside = (forward >= 0).all(1) & (forward[:, 0] < width) & (forward[:, 1] < height)
    returned = np.hypot(*(back - points).T) < MAX_RETURN_PX
    return forward, inside & returned & (forward_status.ravel() == 1) & (back_status.ravel() == 1)


def overlay_mask(grays: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Find textured pixels that stay the same over a window: graphics burnt into the picture of a moving camera.

    Args:
        grays: images (T, H, W) uint8 of a window.

    Returns:
        Mask (H // 2, W // 2) bool of the half-size image, None if there are no such graphics; and the share of the
        textured pixels that are still, 0..1. A high share is no overlay: the camera stood still.
    """
    halves = np.stack([halve(gray) for gray in (*grays[::4], grays[-1])])
    still = halves.max(0) - halves.min(0) <= STILL_RANGE
    middle = halves[len(halves) // 2]
    x, y = (cv2.Sobel(middle, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    textured = cv2.dilate((np.hypot(x, y) > EDGE).astype(np.uint8), np.ones((3, 3), np.uint8))
    overlay = cv2.morphologyEx(still & textured, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    share = float(overlay.sum() / max(1, textured.sum()))
    if not MIN_OVERLAY < share < MAX_OVERLAY:
        return None, share
    return cv2.dilate(overlay, np.ones((3, 3), np.uint8)).astype(bool), share
