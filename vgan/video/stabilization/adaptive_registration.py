"""Camera motion by tracked points: a similarity per pair of frames, or a homography where that explains it better.

Points of a grid (`point_tracks`) are tracked from frame to frame, which needs neither descriptors nor matching. Frames
that tracking cannot follow (fast pans) are matched by SIFT. A homography (8 degrees of freedom, as in the published
code) follows a turning camera and rolling shutters where the similarity of the preset "paper" fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.video.config import StabilizeConfig
from vgan.video.stabilization.drift_correction import correct_drift, make_template
from vgan.video.stabilization.geometry import EVIDENCE_PX, IDENTITY, limit_distortion, project, scale_of, scaling
from vgan.video.stabilization.point_tracks import halve, spread_corners, track
from vgan.video.stabilization.registration import (
    MAX_ZOOM,
    PairRegistration,
    Registration,
    find_features,
    match_pair,
    refine,
)

REDETECT_FRAMES, REDETECT_SHARE = 8, 0.6  # new points after so many frames, or when fewer than this share remain
INLIER_PX = 1.0  # RANSAC threshold, pixels at a short side of 128 px
# Of clips of the tuning groups with fewer in their worst pair (8 to 11), five of eight still shook.
MIN_INLIERS = 12
MIN_TRACKED = 0.3  # minimum share of the points that must fit one transform; below it SIFT is tried
MIN_MATCHED = 0.4  # the same for SIFT's matches
# A homography must fit this share of the points more than the similarity does: its four additional unknowns fit noise.
GAIN = 0.08
RANSAC_ITERATIONS, RANSAC_CONFIDENCE = 200, 0.99
TEMPLATE_PX = 64  # short side of the small images of the drift correction
CORRECT_EVERY = 2  # registered frames
# Homographies of a scene with depth add up to shear. By eye, clips with 34 to 70 px are sheared, with 12 px are not.
MAX_DISTORTION_PX = 20.0  # of a composed transform, pixels at 128 px


@dataclass(frozen=True)
class Fit:
    """Transform (3, 3) that maps points `after` (M, 2) to `before` (M, 2), its inliers; of `num_points` candidates."""

    transform: np.ndarray
    after: np.ndarray
    before: np.ndarray
    num_points: int
    is_homography: bool


def register(grays: np.ndarray, config: StabilizeConfig, excluded: np.ndarray | None = None) -> Registration:
    """Estimate the camera motion of each frame of `grays` (T, H, W) uint8 relative to the first.

    Args:
        grays: images of a window.
        config: minimum number of points.
        excluded: pixels (H // 2, W // 2) bool of the half-size images whose corners are not used, or None.

    Raises:
        VideoError: stage "stabilize", reason too_few_matches if two adjacent frames cannot be registered, or collapsed
            if the picture is scaled by more than a factor of MAX_ZOOM.
    """
    height, width = grays.shape[1:]
    unit = EVIDENCE_PX / min(height, width)
    drift = _Drift(grays[0], unit)
    transforms = [IDENTITY]
    pairs: list[PairRegistration] = []
    points, detected, age = np.zeros((0, 2), np.float32), 0, REDETECT_FRAMES
    num_homographies = 0
    for t in range(1, len(grays)):
        before, after = grays[t - 1], grays[t]
        if np.array_equal(before, after):
            transforms.append(transforms[-1])
            continue
        if age == REDETECT_FRAMES or len(points) < REDETECT_SHARE * detected:
            points = spread_corners(before, excluded)
            detected, age = len(points), 0
        age += 1
        tracked, is_tracked = track(before, after, points) if len(points) else (points, np.zeros(0, bool))
        fit = fit_motion(tracked[is_tracked], points[is_tracked], len(points), config, unit)
        if fit is None or len(fit.after) < MIN_TRACKED * fit.num_points:
            fit = _match_frames(before, after, config, unit)
        if fit is None:
            minimum = f"at least {max(config.min_matches, MIN_INLIERS)} and {MIN_TRACKED:.0%} of the points"
            detail = f"frame {t} cannot be registered to the one before; {minimum} must fit one transform"
            raise VideoError("stabilize", "too_few_matches", detail)
        points = tracked[is_tracked]
        num_homographies += fit.is_homography
        transform = _normalized(transforms[-1] @ fit.transform)
        if len(pairs) % CORRECT_EVERY == 1:
            transform = drift.correct(after, transform)
        if num_homographies:
            transform = limit_distortion(transform, height, width, MAX_DISTORTION_PX / unit)
        if not 1 / MAX_ZOOM < scale_of(transform) < MAX_ZOOM:
            zoom = f"zoom {scale_of(transform):.3g} of frame {t} relative to the first"
            raise VideoError("stabilize", "collapsed", zoom)
        transforms.append(transform)
        pairs.append(_quality_of(fit, unit))
    return Registration(np.stack(transforms), pairs, drift_px=0.0, num_homographies=num_homographies)


class _Drift:
    """Correction of transforms by alignment of small images with that of the first frame."""

    def __init__(self, first: np.ndarray, unit: float) -> None:
        self._scale = min(1.0, TEMPLATE_PX / min(first.shape))
        self._unit = unit / self._scale
        self._to_small = scaling(self._scale)
        self._from_small = np.linalg.inv(self._to_small)
        self._template = make_template(self._small(first))

    def correct(self, gray: np.ndarray, transform: np.ndarray) -> np.ndarray:
        """Correct the transform (3, 3) from a frame (H, W) uint8 to the first one."""
        predicted = _normalized(self._to_small @ transform @ self._from_small)
        corrected = correct_drift(self._template, self._small(gray), predicted, self._unit, hold=1.0)
        return _normalized(self._from_small @ corrected @ self._to_small)

    def _small(self, gray: np.ndarray) -> np.ndarray:
        return cv2.resize(gray, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA)


def _quality_of(fit: Fit, unit: float) -> PairRegistration:
    """Return the quality of the registration of a pair of frames."""
    error = np.hypot(*(project(fit.transform, fit.after) - fit.before).T)
    return PairRegistration(
        residual_px=float(np.sqrt((error**2).mean())) * unit,
        inlier_ratio=len(fit.after) / fit.num_points,
        num_matches=len(fit.after),
        photometric=0.0,
    )


def fit_motion(
    after: np.ndarray, before: np.ndarray, num_points: int, config: StabilizeConfig, unit: float
) -> Fit | None:
    """Fit a similarity, or a homography if it fits GAIN more of the points, by RANSAC; None with too few inliers.

    Args:
        after: points (N, 2) float32 of the later frame.
        before: the same points in the earlier frame.
        num_points: number of points before tracking or matching, at least N.
        config: minimum number of points.
        unit: pixels at EVIDENCE_PX per pixel of the points.
    """
    minimum = max(config.min_matches, MIN_INLIERS)
    if len(after) < minimum:
        return None
    options: dict[str, Any] = {
        "ransacReprojThreshold": INLIER_PX / unit,
        "maxIters": RANSAC_ITERATIONS,
        "confidence": RANSAC_CONFIDENCE,
    }
    cv2.setRNGSeed(0)
    affine, affine_inliers = cv2.estimateAffinePartial2D(after, before, method=cv2.RANSAC, **options)
    best = None
    num_inliers = 0
    if affine is not None:
        best, is_inlier, num_inliers = np.vstack([affine, [0, 0, 1]]), affine_inliers.ravel() == 1, affine_inliers.sum()
    is_homography = False
    if num_inliers < (1 - GAIN) * len(after):
        # USAC with local optimization finds more inliers than cv2.RANSAC in a fifth of the time.
        homography, inliers = cv2.findHomography(after, before, method=cv2.USAC_FAST, **options)
        if homography is not None and inliers.sum() > num_inliers + GAIN * len(after):
            best, is_inlier, num_inliers = _normalized(homography), inliers.ravel() == 1, inliers.sum()
            is_homography = True
    if best is None or num_inliers < minimum:
        return None
    return Fit(best, after[is_inlier], before[is_inlier], num_points, is_homography)


def _match_frames(before: np.ndarray, after: np.ndarray, config: StabilizeConfig, unit: float) -> Fit | None:
    """Fit the motion between two images (H, W) uint8 to SIFT matches of half-size images, refined at full size.

    Returns None if less than MIN_MATCHED of the matches, or fewer points than `fit_motion` needs, fit one transform.
    """
    scale = before.shape[0] // 2 / before.shape[0]
    detector = cv2.SIFT.create(config.num_keypoints)
    features_before, features_after = (find_features(detector, halve(gray)) for gray in (before, after))
    small_unit = unit / scale
    matches = match_pair(features_before, features_after, config, small_unit)
    if matches is None:
        return None
    refined = refine(before, after, matches, scale, config.ransac_px / small_unit)
    points_after, points_before = (
        ((p + 0.5) / scale - 0.5).astype(np.float32) for p in (refined.after, refined.before)
    )
    fit = fit_motion(points_after, points_before, matches.num_matches, config, unit)
    return fit if fit is not None and len(fit.after) >= MIN_MATCHED * fit.num_points else None


def _normalized(transform: np.ndarray) -> np.ndarray:
    """Scale a homography (3, 3) so that its last element is 1."""
    return transform / transform[2, 2]
