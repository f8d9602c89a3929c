"""Reimplementation of the original stabilizer for comparison: full resolution, homographies, no error test.

Algorithm of the published tool (videogan, extra/stabilize_videos_many.py): default SIFT on the frames as they are,
FLANN matching, a homography (8 unknowns) per pair of adjacent frames, composed to the first frame, warping at full
resolution, missing pixels from the previous composite, then downscaling and cropping.
"""

from __future__ import annotations

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.video.stabilization.geometry import EVIDENCE_PX, IDENTITY
from vgan.video.stabilization.registration import PairRegistration, Registration

FLANN_TREES, FLANN_CHECKS, FLANN_KDTREE = 5, 50, 1
RATIO, MIN_MATCHES, RANSAC_PX = 0.7, 10, 5.0  # RANSAC threshold in pixels of the input frames
STORED_SIZE = 128  # size of the original's stored frames, pixels; its loader downscaled them to the training size


def register(frames: np.ndarray) -> Registration:
    """Estimate homographies (T, 3, 3) from `frames` (T, H, W, 3) uint8 to the first one, as the original does.

    Homographies are in pixels of the frames. The scores of a pair are measured as in `register.register`; drift is not
    measured (0), because this algorithm cannot correct it.

    Raises:
        VideoError: stage "stabilize", reason too_few_matches: fewer than ten good matches (as in the original), or no
            homography (where the original crashed).
    """
    height, width = frames.shape[1:3]
    unit = EVIDENCE_PX / min(height, width)
    cv2.setRNGSeed(0)  # FLANN's trees and RANSAC
    detector = cv2.SIFT.create()
    points_before, descriptors_before = _features(detector, frames[0])
    transforms, pairs = [IDENTITY], []
    for t in range(1, len(frames)):
        points, descriptors = _features(detector, frames[t])
        index_after, index_before = _flann_matches(descriptors, descriptors_before)
        num_matches = len(index_after)
        if num_matches < MIN_MATCHES:
            raise VideoError("stabilize", "too_few_matches", f"{num_matches} matches; at least {MIN_MATCHES}")
        source, target = points[index_after], points_before[index_before]
        step, inliers = cv2.findHomography(source, target, cv2.RANSAC, RANSAC_PX)
        if step is None:
            raise VideoError("stabilize", "too_few_matches", f"no homography fits any of {num_matches} matches")
        is_inlier = inliers.ravel() == 1
        errors = _project(step, source[is_inlier]) - target[is_inlier]
        pairs.append(
            PairRegistration(
                residual_px=float(np.sqrt((errors**2).sum(1).mean())) * unit if is_inlier.any() else float("inf"),
                inlier_ratio=float(is_inlier.mean()),
                num_matches=num_matches,
                photometric=_photometric_residual(frames[t - 1], frames[t], step),
            )
        )
        composed = transforms[-1] @ step
        transforms.append(composed / composed[2, 2])
        points_before, descriptors_before = points, descriptors
    return Registration(np.stack(transforms), pairs, drift_px=0.0)


def render(frames: np.ndarray, transforms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp `frames` (T, H, W, 3) at full resolution, fill missing pixels, downscale to 128 px, crop, resize to `size`.

    Missing pixels are taken from the previous composite frame.

    Returns:
        Clip (T, size, size, 3) uint8, and where it shows the source, (T, size, size) bool; the rest is filled.

    Raises:
        VideoError: stage "stabilize", reason collapsed: a warped frame is completely out of view; the original ended
            its clip there.
    """
    height, width = frames.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    inside = np.full((height, width), 255, np.uint8)
    composite = frames[0]
    clip, coverage = [_cropped(composite, size)], [np.ones((size, size), bool)]
    for t in range(1, len(frames)):
        warped = cv2.warpPerspective(frames[t], transforms[t], (width, height))
        covered = cv2.erode(cv2.warpPerspective(inside, transforms[t], (width, height)), np.ones((5, 5), np.uint8)) > 0
        if not covered.any():
            raise VideoError("stabilize", "collapsed", f"no pixel of frame {t} remains in view")
        composite = np.where(covered[..., None], warped, composite)
        clip.append(_cropped(composite, size))
        visible = covered[top : top + square, left : left + square].astype(np.float32)
        coverage.append(cv2.resize(visible, (size, size), interpolation=cv2.INTER_AREA) > 0.5)
    return np.stack(clip), np.stack(coverage)


def _cropped(frame: np.ndarray, size: int) -> np.ndarray:
    """Downscale to a short side of 128 px, crop the center square and resize it to (size, size, 3) as the original."""
    scale = STORED_SIZE / min(frame.shape[:2])
    stored = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = ((side - STORED_SIZE) // 2 for side in stored.shape[:2])
    stored = stored[top : top + STORED_SIZE, left : left + STORED_SIZE]
    return cv2.resize(stored, (size, size), interpolation=cv2.INTER_AREA)


def _features(detector: cv2.SIFT, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, 2) float32 and descriptors (N, 128) float32 of a color frame, which the original also uses."""
    keypoints, descriptors = detector.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    return points, np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def _flann_matches(query: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (M,), (M,) of approximate nearest neighbors that pass the ratio test; none for fewer than two."""
    if len(query) < 2 or len(train) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    matcher = cv2.FlannBasedMatcher({"algorithm": FLANN_KDTREE, "trees": FLANN_TREES}, {"checks": FLANN_CHECKS})
    nearest = [pair for pair in matcher.knnMatch(query, train, k=2) if len(pair) == 2]
    good = [best for best, second in nearest if best.distance < RATIO * second.distance]
    return np.array([match.queryIdx for match in good], int), np.array([match.trainIdx for match in good], int)


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography (3, 3) to points (N, 2)."""
    return cv2.perspectiveTransform(points[:, None], homography)[:, 0]


def _photometric_residual(before: np.ndarray, after: np.ndarray, homography: np.ndarray) -> float:
    """Return the mean absolute difference of gray values, 0..255, where the frames overlap; 255 if they do not."""
    height, width = before.shape[:2]
    gray_before, gray_after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    warped = cv2.warpPerspective(gray_after, homography, (width, height))
    overlap = cv2.warpPerspective(np.full_like(gray_after, 255), homography, (width, height)) == 255
    return float(cv2.absdiff(gray_before, warped)[overlap].mean()) if overlap.any() else 255.0
