"""Warp a window of frames to the first one, fill what it lacks from the preceding frame, and downscale it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vgan.video.stabilization.geometry import is_affine

# Width of a frame's border that is not copied into a clip, as share of the short side. Black lines of captured film and
# the blurred edge of a cropped bar would leave a trail of stripes where each frame's missing part is filled.
BORDER = 3 / 64


def downscale(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Downscale `frames` (T, H, W, 3) uint8 by averaging to a short side of at most `short_side`; never enlarge.

    Frames are first halved as often as possible, which is exact and fast: 0.9 ms instead of 3.0 ms for 1280x720 to 128.
    """
    if min(frames.shape[1:3]) <= short_side:
        return frames
    return np.stack([_reduced(frame, short_side) for frame in frames])


def _reduced(frame: np.ndarray, short_side: int) -> np.ndarray:
    """Downscale one frame (H, W, 3) to a short side of `short_side`."""
    while min(frame.shape[:2]) >= 2 * short_side:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    scale = short_side / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def render(frames: np.ndarray, transforms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp `frames` (T, H, W, 3) by `transforms` (T, 3, 3) to the first frame's center square, downscaled to `size`.

    Each frame is resampled by one bilinear warp to an integer multiple of `size` that is at least the source's
    resolution, then averaged over blocks of pixels. A direct warp to `size` would cause aliasing that flickers when the
    camera moves. Block averages are fast, and without motion they equal area downscaling if `size` divides the source's
    short side.

    Pixels that no source pixel covers are copied from the preceding frame of the clip (the first frame covers all), as
    are those of a frame's border of `BORDER` next to them.

    Returns:
        Clip (T, size, size, 3) uint8, and where it shows the source, (T, size, size) bool; the rest is filled.
    """
    height, width = frames.shape[1:3]
    square = min(height, width)
    factor = math.ceil(square / size)
    canvas = size * factor
    crop = center_crop(height, width, canvas)
    to_clip = center_crop(height, width, size)
    clip = np.empty((len(frames), size, size, 3), np.uint8)
    covered = source_coverage(np.linalg.inv(to_clip @ transforms), height, width, size)
    covered[0] = True
    options = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    for t, frame in enumerate(frames):
        transform = crop @ transforms[t]
        if is_affine(transforms[t]):
            warped = cv2.warpAffine(frame, transform[:2], (canvas, canvas), **options)
        else:
            warped = cv2.warpPerspective(frame, transform, (canvas, canvas), **options)
        clip[t] = warped if factor == 1 else cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
        if not covered[t].all():
            cv2.copyTo(clip[t - 1], 255 * (~covered[t]).astype(np.uint8), clip[t])
    return clip, covered


def center_crop(height: int, width: int, size: int) -> np.ndarray:
    """Return the transform (3, 3) from pixels of a frame to those of its center square at `size`.

    Pixel centers are at half units: output x corresponds to source left + (x + .5) / zoom - .5.
    """
    square = min(height, width)
    zoom = size / square
    left, top = (width - square) / 2, (height - square) / 2
    return np.array([[zoom, 0, (0.5 - left) * zoom - 0.5], [0, zoom, (0.5 - top) * zoom - 0.5], [0, 0, 1]])


def source_coverage(to_source: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Return the masks (T, size, size) bool of clip pixels that, with all adjacent ones, are completely in the source.

    The adjacent pixels are a safety margin, which is clipped at the clip's border so that the identity covers the full
    picture. A side of the source that crosses the clip is moved inward by `BORDER`. The source is the intersection of
    half-planes, so it is enough to compare sums of a term per column and a term per row, the least of each over a
    pixel's square.

    Args:
        to_source: homographies (T, 3, 3) from pixels of the clip to pixels of the source.
        height: height of the source, pixels.
        width: width of the source, pixels.
        size: height and width of the clip, pixels.
    """
    center = np.arange(size)
    low, high = np.maximum(center - 1.5, -0.5), np.minimum(center + 1.5, size - 0.5)
    margin = 0.5 + 1e-6
    x, y, depth = np.moveaxis(to_source, 1, 0)
    # Each side of the source, and the horizon of a homography, is a line in the clip: by_x * x + by_y * y + offset > 0.
    right, lower = (width - 1 + margin) * depth - x, (height - 1 + margin) * depth - y
    lines = np.stack([x + margin * depth, y + margin * depth, right, lower, depth], axis=1)  # (T, 5, 3)
    least_x, least_y = _least(lines, low, high)
    is_crossed = least_x.min(2) + least_y.min(2) <= 0
    is_crossed_side = is_crossed & (np.arange(5) < 4)  # the last line is the horizon
    lines -= BORDER * min(height, width) * is_crossed_side[..., None] * depth[:, None]
    least_x, least_y = _least(lines, low, high)
    inside = np.ones((len(to_source), size, size), bool)
    for t, line in np.argwhere(is_crossed):
        inside[t] &= least_x[t, line] > -least_y[t, line][:, None]
    return inside


def _least(lines: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least values of the terms per column and per row of `lines` (T, 5, 3), two arrays (T, 5, size).

    Args:
        lines: coefficients of x, of y, and constants.
        low: least coordinate of each pixel's square, (size,).
        high: greatest coordinate of each pixel's square, (size,).
    """
    by_x, by_y, offset = np.moveaxis(lines[..., None], 2, 0)  # each (T, 5, 1)
    return np.minimum(by_x * low, by_x * high) + offset, np.minimum(by_y * low, by_y * high)
