"""Plane transforms: zoom, distances, distortion and the projection of points."""

from __future__ import annotations

import cv2
import numpy as np

EVIDENCE_PX = 128  # short side of the picture that all scores in pixels refer to
IDENTITY = np.eye(3)


def project(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (N, 2) by a homography (3, 3); returns float64 (N, 2)."""
    mapped = points @ transform[:, :2].T + transform[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def is_affine(transform: np.ndarray) -> bool:
    """Return True if the last row of a transform (3, 3) is (0, 0, 1)."""
    return bool(transform[2, 0] == 0 and transform[2, 1] == 0 and transform[2, 2] == 1)


def scale_of(transforms: np.ndarray) -> np.ndarray:
    """Return the zoom factors (...) of similarities (..., 3, 3), or of the linear parts of homographies."""
    return np.sqrt(np.abs(np.linalg.det(transforms[..., :2, :2])))


def map_corners(transforms: np.ndarray, height: int, width: int) -> np.ndarray:
    """Map a picture's four corners by transforms (..., 3, 3); returns complex (..., 4), x + iy."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    x, y, depth = np.moveaxis(transforms @ corners, -2, 0)
    return (x + 1j * y) / depth


def corner_distance(a: np.ndarray, b: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the RMS distance (...), pixels, of the corners mapped by transforms `a` and `b` (..., 3, 3)."""
    return _rms(map_corners(a, height, width) - map_corners(b, height, width))


def distortion(transforms: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return how far homographies (..., 3, 3) are from a similarity: RMS distance (...), pixels, of mapped corners.

    The similarity is that which fits the four corners best.
    """
    return _rms(_split_corners(transforms, height, width)[1])


def limit_distortion(transform: np.ndarray, height: int, width: int, max_px: float) -> np.ndarray:
    """Return the homography (3, 3) itself, or the one in its direction whose `distortion` is `max_px` pixels."""
    similar, rest = _split_corners(transform, height, width)
    distance = _rms(rest)
    if distance <= max_px:
        return transform
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
    moved = similar + rest * (max_px / distance)
    limited = cv2.getPerspectiveTransform(corners, np.stack([moved.real, moved.imag], axis=1).astype(np.float32))
    return limited / limited[2, 2]


def _split_corners(transforms: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the mapped corners, complex (..., 4), into those of the nearest similarity and the rest."""
    before = map_corners(IDENTITY, height, width)
    before = before - before.mean()
    after = map_corners(transforms, height, width)
    center = after.mean(-1, keepdims=True)
    turn = ((after - center) * before.conj()).sum(-1, keepdims=True) / (np.abs(before) ** 2).sum()
    similar = turn * before + center
    return similar, after - similar


def _rms(distances: np.ndarray) -> np.ndarray:
    """Return the root mean square of the absolute values (..., N) over the last axis."""
    return np.sqrt((np.abs(distances) ** 2).mean(-1))


def scaling(scale: float) -> np.ndarray:
    """Return the transform (3, 3) from pixels of an image to those of the image resized by `scale`.

    Pixel centers are at half units.
    """
    offset = 0.5 * scale - 0.5
    return np.array([[scale, 0, offset], [0, scale, offset], [0, 0, 1]])
