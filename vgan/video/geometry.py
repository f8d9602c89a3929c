"""Plane transforms: the identity, zoom, distances and the projection of points."""

from __future__ import annotations

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


def scale_of(transform: np.ndarray) -> float:
    """Return the zoom factor of a similarity (3, 3), or of the linear part of a homography."""
    return float(np.sqrt(abs(np.linalg.det(transform[:2, :2]))))


def corner_distance(a: np.ndarray, b: np.ndarray, height: int, width: int) -> float:
    """Return the RMS distance, pixels, of the picture's four corners mapped by transforms `a` and `b` (3, 3)."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    at_a, at_b = a @ corners, b @ corners
    return float(np.sqrt(((at_a[:2] / at_a[2] - at_b[:2] / at_b[2]) ** 2).sum(0).mean()))


def distortion(transform: np.ndarray, height: int, width: int) -> float:
    """Return how far a homography (3, 3) is from a similarity: RMS distance, pixels, of the picture's mapped corners.

    The similarity is that which fits the four corners best.
    """
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    before = (corners - corners.mean(0)) @ [1, 1j]
    after = project(transform, corners) @ [1, 1j]
    after -= after.mean()
    turn = (before.conj() * after).sum() / (np.abs(before) ** 2).sum()
    return float(np.sqrt((np.abs(turn * before - after) ** 2).mean()))


def scaling(scale: float) -> np.ndarray:
    """Return the transform (3, 3) from pixels of an image to those of the image resized by `scale`.

    Pixel centers are at half units.
    """
    offset = 0.5 * scale - 0.5
    return np.array([[scale, 0, offset], [0, scale, offset], [0, 0, 1]])
