"""Camera motion estimation for a window: SIFT matches of adjacent frames, refinement, drift correction to first frame.

Three steps per frame, each fast because only a small error remains from the one before:

1. SIFT keypoints on a small image (64 px short side), matched to those of the preceding frame, and a 4-DoF similarity
   by RANSAC (paper section 3.1). Keypoints are detected once per frame and used for two pairs. With too few matches,
   keypoints are detected on the larger image: without that, 5 of 34 UCF101 windows failed instead of 1.
2. Lucas-Kanade at the matched points on the larger image (128 px) corrects the error of keypoints from the small image.
3. Direct alignment of the small image with the clip's first frame (inverse-compositional Gauss-Newton, Baker and
   Matthews 2004) corrects the accumulated error of 31 composed transforms.

Corner error on known motion (6 px, 2 degrees, 2 %; 12 real stills, px at 128, median and 95th percentile) after step 1
alone: 0.48 and 1.6; after 2: 0.12 and 0.40; after 3: 0.05 and 0.15. SIFT at 128 px alone: 0.13 and 0.47, at three times
the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.video.config import StabilizeConfig
from vgan.video.stabilization.drift_correction import correct_drift, make_template, warp
from vgan.video.stabilization.geometry import EVIDENCE_PX, IDENTITY, corner_distance, scale_of, scaling

# Less blur than SIFT's defaults of 3 layers and 1.6: at 64 px 83 keypoints in 1.9 ms instead of 70 in 2.8 ms (848x480,
# at most 100 keypoints).
SIFT_LAYERS, SIFT_SIGMA = 2, 1.2
SIFT_CONTRAST, SIFT_EDGE = 0.04, 10.0  # defaults of OpenCV

LK_WINDOW = 11  # px; 9 to 15 are equally good, 21 mixes moving objects with the background
LK_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.01)
FIT_SOFTNESS_PX = 0.5  # error with a weight of 1/4

MAX_ZOOM = 10.0  # a larger zoom leaves nothing of the picture: transforms fitted across cuts collapse it


@dataclass(frozen=True)
class Features:
    """Keypoints of a small image: points (N, 2) float32, (x, y) in its pixels; descriptors (N, 128) float32."""

    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Matches:
    """Inlier matches of adjacent frames: points (M, 2) float32 in the later and in the earlier small image."""

    after: np.ndarray
    before: np.ndarray
    inlier_ratio: float  # inliers per match, 0..1
    num_matches: int


@dataclass(frozen=True)
class PairRegistration:
    """Registration quality of a frame and the preceding one."""

    residual_px: float  # RMS reprojection error of the inliers, pixels at 128 px short side
    inlier_ratio: float
    num_matches: int
    photometric: float  # mean absolute difference after warping, 0..255


@dataclass(frozen=True)
class Registration:
    """Camera motion of a window: transforms (T, 3, 3) from the pixels of each input frame to those of the first."""

    transforms: np.ndarray
    pairs: list[PairRegistration]  # one per frame that differs from the preceding one
    drift_px: float  # RMS corner distance of the last frame to its direct match with the first, at 128 px; 0 if none
    num_homographies: int = 0  # pairs registered by a homography instead of a similarity


def register(grays: np.ndarray, config: StabilizeConfig) -> Registration:
    """Estimate the camera motion of each frame of `grays` (T, H, W) uint8 relative to the first.

    A frame equal to the preceding one (from resampling a slow source) is not registered again and has no pair.

    Deterministic for any number of threads: matching is exact, RANSAC has a fixed seed, sums have a fixed order.

    Raises:
        VideoError: stage "stabilize", reason too_few_matches if two adjacent frames cannot be registered (there is no
            fallback to the identity), or collapsed if the picture is scaled by more than a factor of MAX_ZOOM, up or
            down, so that a warp is meaningless.
    """
    scale = min(1.0, config.sift_size / min(grays.shape[1:]))
    smalls = [cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for gray in grays]
    height, width = smalls[0].shape
    unit = EVIDENCE_PX / min(height, width)  # pixels at EVIDENCE_PX per pixel of the small image
    detector = cv2.SIFT.create(config.num_keypoints, SIFT_LAYERS, SIFT_CONTRAST, SIFT_EDGE, SIFT_SIGMA)
    template = make_template(smalls[0])
    first = before = find_features(detector, smalls[0])
    transforms, pairs = [IDENTITY], []
    for t in range(1, len(grays)):
        if np.array_equal(grays[t], grays[t - 1]):
            transforms.append(transforms[-1])
            continue
        after = find_features(detector, smalls[t])
        matches = match_pair(before, after, config, unit)
        if matches is None:
            large_before, large_after = (find_features(detector, gray, scale) for gray in (grays[t - 1], grays[t]))
            matches = match_pair(large_before, large_after, config, unit)
        if matches is None:
            minimum = f"at least {config.min_matches} that fit one similarity"
            raise VideoError(
                "stabilize", "too_few_matches", f"frame {t} has too few matches to the one before; {minimum}"
            )
        matches = refine(grays[t - 1], grays[t], matches, scale, config.ransac_px / unit)
        step = fit_similarity(matches.after, matches.before, FIT_SOFTNESS_PX / unit)
        transform = correct_drift(template, smalls[t], transforms[-1] @ step, unit)
        if not 1 / MAX_ZOOM < scale_of(transform) < MAX_ZOOM:
            raise VideoError(
                "stabilize", "collapsed", f"zoom {scale_of(transform):.3g} of frame {t} relative to the first"
            )
        step = np.linalg.inv(transforms[-1]) @ transform
        pairs.append(
            PairRegistration(
                residual_px=residual(step, matches, config.ransac_px / unit) * unit,
                inlier_ratio=matches.inlier_ratio,
                num_matches=matches.num_matches,
                photometric=photometric_residual(smalls[t - 1], smalls[t], step),
            )
        )
        transforms.append(transform)
        before = after
    enlarge = scaling(1 / scale)
    drift_px = 0.0
    matches = match_pair(first, before, config, unit)
    if matches is not None:
        matches = refine(grays[0], grays[-1], matches, scale, config.ransac_px / unit)
        direct = fit_similarity(matches.after, matches.before, FIT_SOFTNESS_PX / unit)
        drift_px = corner_distance(direct, transforms[-1], height, width) * unit
    return Registration(enlarge @ np.stack(transforms) @ np.linalg.inv(enlarge), pairs, drift_px)


def find_features(detector: cv2.SIFT, gray: np.ndarray, scale: float = 1.0) -> Features:
    """Detect SIFT keypoints in a gray image (H, W) uint8; a blank image has none.

    Points are returned in pixels of the image downscaled by `scale`.
    """
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    points = ((points + 0.5) * scale - 0.5).astype(np.float32)
    return Features(points, np.zeros((0, 128), np.float32) if descriptors is None else descriptors)


def match(before: Features, after: Features, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (M,), (M,) of matching keypoints: exhaustive L2 nearest neighbors that pass Lowe's ratio test.

    SIFT's descriptors are integers with a norm of about 512, so sums of their products are below 2^24 and exact in
    float32: the result does not depend on the order or threads of the matrix product.
    """
    if len(before.points) == 0 or len(after.points) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    a, b = before.descriptors, after.descriptors
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    nearest = squared.argmin(1)
    best, second = np.partition(squared, 1, axis=1)[:, :2].T
    passed = np.flatnonzero(best < ratio * ratio * second)
    return passed, nearest[passed]


def match_pair(before: Features, after: Features, config: StabilizeConfig, unit: float) -> Matches | None:
    """Return the matches of two images that fit one similarity (RANSAC); None if fewer than `config.min_matches`.

    Args:
        before: keypoints of the earlier small image.
        after: keypoints of the later small image.
        config: ratio test, RANSAC threshold and minimum number of matches.
        unit: pixels at EVIDENCE_PX per pixel of the small image.
    """
    index_before, index_after = match(before, after, config.lowe_ratio)
    num_matches = len(index_before)
    if num_matches < config.min_matches:
        return None
    source, target = after.points[index_after], before.points[index_before]
    cv2.setRNGSeed(0)
    affine, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=config.ransac_px / unit, confidence=0.999
    )
    if affine is None or inliers.sum() < config.min_matches:
        return None
    is_inlier = inliers.ravel() == 1
    return Matches(source[is_inlier], target[is_inlier], float(is_inlier.mean()), num_matches)


def refine(before: np.ndarray, after: np.ndarray, matches: Matches, scale: float, reach_px: float) -> Matches:
    """Refine the later points of `matches` by Lucas-Kanade tracking of the earlier points at full size.

    Points that are lost, or move by `reach_px` or more, are dropped. If fewer than three remain, `matches` are returned
    unchanged.

    Args:
        before: earlier image (H, W) uint8.
        after: later image (H, W) uint8.
        matches: matches in pixels of the small images.
        scale: size of the small images relative to `before` and `after`.
        reach_px: maximum displacement, pixels of the small images.
    """
    at_before, at_after = ((points + 0.5) / scale - 0.5 for points in (matches.before, matches.after))
    tracked, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        at_before.astype(np.float32),
        at_after.astype(np.float32),
        winSize=(LK_WINDOW, LK_WINDOW),
        maxLevel=0,
        criteria=LK_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    tracked = (tracked + 0.5) * scale - 0.5
    valid = (status.ravel() == 1) & (np.hypot(*(tracked - matches.after).T) < reach_px)
    if valid.sum() < 3:
        return matches
    return Matches(tracked[valid], matches.before[valid], matches.inlier_ratio, matches.num_matches)


def fit_similarity(source: np.ndarray, target: np.ndarray, softness_px: float) -> np.ndarray:
    """Fit the similarity (3, 3) that maps points `source` (N, 2) to `target` (N, 2), by reweighted least squares.

    Points as complex numbers make it a single linear equation. The weights are those of Geman and McClure;
    `softness_px` is the error with a weight of 1/4.
    """
    a, b = (points.astype(np.float64).view(np.complex128).ravel() for points in (source, target))
    weights = np.ones(len(a))
    for _ in range(3):
        total = weights.sum()
        mean_a, mean_b = (weights * a).sum() / total, (weights * b).sum() / total
        spread = (weights * abs(a - mean_a) ** 2).sum()
        turn = (weights * (a - mean_a).conj() * (b - mean_b)).sum() / spread if spread > 0 else 1.0 + 0j
        shift = mean_b - turn * mean_a
        weights = 1 / (1 + abs(turn * a + shift - b) ** 2 / softness_px**2) ** 2
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])


def residual(transform: np.ndarray, matches: Matches, bound_px: float) -> float:
    """Return the RMS reprojection error, small pixels, of the matches with an error below `bound_px`; inf if none."""
    errors = np.hypot(*(matches.after @ transform[:2, :2].T + transform[:2, 2] - matches.before).T)
    inliers = errors[errors < bound_px]
    return float(np.sqrt((inliers**2).mean())) if len(inliers) else float("inf")


def photometric_residual(before: np.ndarray, after: np.ndarray, transform: np.ndarray) -> float:
    """Return the mean absolute difference, 0..255, of `before` and warped `after` in their overlap; 255 without one."""
    difference = np.abs(warp(after.astype(np.float32), transform) - before)
    overlap = np.isfinite(difference)
    return float(difference[overlap].mean()) if overlap.any() else 255.0
