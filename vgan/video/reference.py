"""The original script's stabilizer, step by step, to compare with: full resolution, 8 unknowns a pair, no error test.

Facts of the published tool (videogan, extra/stabilize_videos_many.py), written anew: default SIFT on the frames as they
are, FLANN matching, a homography for each two neighbours, chained to the first frame, warped at full resolution, what
is missing taken from the frame composed before, then reduced and cropped.
"""

from __future__ import annotations

import cv2
import numpy as np

from vgan.errors import BadVideo
from vgan.video.register import EVIDENCE_PX, IDENTITY, Pair, Registration

FLANN_TREES, FLANN_CHECKS, FLANN_KDTREE = 5, 50, 1
RATIO, MIN_MATCHES, RANSAC_PX = 0.7, 10, 5.0  # pixels of the frames as given
STORED_SIZE = 128  # what the original kept; its loader reduced that to the size of training


def register(frames: np.ndarray) -> Registration:
    """Homographies (T, 3, 3) of `frames` (T, H, W, 3) uint8 onto the first, in their own pixels, as the original does.

    A pair's evidence is measured as for our own; drift is not measured (0), for nothing here could correct it.

    Raises:
        BadVideo: stabilize, too_few_matches: fewer than ten good matches (as the original), or no homography at all
            (where the original crashed); collapsed: the chain has left the picture empty.
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
            raise BadVideo("stabilize", "too_few_matches", f"{num_matches} matches; at least {MIN_MATCHES}")
        source, target = points[index_after], points_before[index_before]
        step, inliers = cv2.findHomography(source, target, cv2.RANSAC, RANSAC_PX)
        if step is None:
            raise BadVideo("stabilize", "too_few_matches", f"no homography fits any of {num_matches} matches")
        kept = inliers.ravel() == 1
        errors = _project(step, source[kept]) - target[kept]
        pairs.append(
            Pair(
                residual_px=float(np.sqrt((errors**2).sum(1).mean())) * unit if kept.any() else float("inf"),
                inlier_ratio=float(kept.mean()),
                num_matches=num_matches,
                photometric=_photometric_residual(frames[t - 1], frames[t], step),
            )
        )
        chained = transforms[-1] @ step
        transforms.append(chained / chained[2, 2])
        points_before, descriptors_before = points, descriptors
    return Registration(np.stack(transforms), pairs, drift_px=0.0)


def render(frames: np.ndarray, transforms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp `frames` (T, H, W, 3) at full resolution, fill from the composite before, reduce to 128, crop, to `size`.

    Returns:
        Clip (T, size, size, 3) uint8, and the share (T,) of each centre square that was filled, 0..1.

    Raises:
        BadVideo: stabilize, collapsed: a frame has left the picture; there the original ended its clip.
    """
    height, width = frames.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    inside = np.full((height, width), 255, np.uint8)
    composite = frames[0]
    clip, filled = [_cropped(composite, size)], [0.0]
    for t in range(1, len(frames)):
        warped = cv2.warpPerspective(frames[t], transforms[t], (width, height))
        own = cv2.erode(cv2.warpPerspective(inside, transforms[t], (width, height)), np.ones((5, 5), np.uint8)) > 0
        if not own.any():
            raise BadVideo("stabilize", "collapsed", f"no pixel of frame {t} is left in the picture")
        composite = np.where(own[..., None], warped, composite)
        clip.append(_cropped(composite, size))
        filled.append(1 - float(own[top : top + square, left : left + square].mean()))
    return np.stack(clip), np.array(filled)


def _cropped(frame: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3): short side to 128, centre square, then to `size` as the original's loader does."""
    scale = STORED_SIZE / min(frame.shape[:2])
    stored = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = ((side - STORED_SIZE) // 2 for side in stored.shape[:2])
    stored = stored[top : top + STORED_SIZE, left : left + STORED_SIZE]
    return cv2.resize(stored, (size, size), interpolation=cv2.INTER_AREA)


def _features(detector: cv2.SIFT, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) float32 and descriptors (N, 128) float32 of a frame in colour, as the original passes it."""
    keypoints, descriptors = detector.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    return points, np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def _flann_matches(query: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,), (M,) of approximate nearest neighbours that pass the ratio test; none for fewer than two."""
    if len(query) < 2 or len(train) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    matcher = cv2.FlannBasedMatcher({"algorithm": FLANN_KDTREE, "trees": FLANN_TREES}, {"checks": FLANN_CHECKS})
    nearest = [pair for pair in matcher.knnMatch(query, train, k=2) if len(pair) == 2]
    good = [best for best, second in nearest if best.distance < RATIO * second.distance]
    return np.array([each.queryIdx for each in good], int), np.array([each.trainIdx for each in good], int)


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography (3, 3)."""
    return cv2.perspectiveTransform(points[:, None], homography)[:, 0]


def _photometric_residual(before: np.ndarray, after: np.ndarray, homography: np.ndarray) -> float:
    """Mean absolute difference of gray values, 0..255, where both frames have pixels; else 255."""
    height, width = before.shape[:2]
    gray_before, gray_after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    warped = cv2.warpPerspective(gray_after, homography, (width, height))
    seen = cv2.warpPerspective(np.full_like(gray_after, 255), homography, (width, height)) == 255
    return float(cv2.absdiff(gray_before, warped)[seen].mean()) if seen.any() else 255.0
