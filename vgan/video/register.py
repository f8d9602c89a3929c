"""Camera motion between frames: SIFT keypoints, matched and fitted by a 4-DoF similarity (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vgan.config import StabilizeConfig
from vgan.errors import BadVideo

IDENTITY = np.eye(3)


@dataclass(frozen=True)
class Features:
    """Keypoints of a frame: points (N, 2) float32 x, y in pixels at registration size; descriptors (N, 128) float32."""

    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Pair:
    """How a frame maps onto the one before it: transform (3, 3), pixels at registration size, and how well it fits."""

    transform: np.ndarray
    residual_px: float
    inlier_ratio: float
    num_matches: int
    photometric: float


def registration_images(frames: np.ndarray, size: int) -> tuple[list[np.ndarray], float]:
    """Gray images (h, w) uint8 of `frames` (T, H, W, 3) uint8, short side at most `size`, and their scale h / H."""
    short_side = min(frames.shape[1:3])
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if short_side <= size:
        return grays, 1.0
    scale = size / short_side
    return [cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for gray in grays], scale


def register(grays: list[np.ndarray], config: StabilizeConfig) -> list[Pair]:
    """One Pair for each neighbouring two of `grays` (each (h, w) uint8), in order: T - 1 of them.

    Deterministic: matching is exhaustive and RANSAC starts from a fixed seed.

    Raises:
        BadVideo: stage "stabilize", at the first pair that fails a test of `config`: too_few_matches, low_inlier_ratio,
            large_residual, scale_jump or photometric.
    """
    cv2.setRNGSeed(0)
    detector = cv2.SIFT.create(nfeatures=config.num_features)
    pairs = []
    before = find_features(detector, grays[0])
    for index in range(1, len(grays)):
        after = find_features(detector, grays[index])
        pair = register_pair(before, after, grays[index - 1], grays[index], config)
        _check(pair, index, config)
        pairs.append(pair)
        before = after  # each frame's keypoints serve two pairs
    return pairs


def find_features(detector: cv2.SIFT, gray: np.ndarray) -> Features:
    """SIFT keypoints of one gray image; none at all on a blank one."""
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    return Features(points, np.zeros((0, 128), np.float32) if descriptors is None else descriptors)


def match(before: Features, after: Features, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,), (M,) of matching keypoints: exhaustive L2 nearest neighbours that pass Lowe's ratio test.

    SIFT's descriptors are whole numbers of norm about 512, so sums of their products stay below 2^24 and are exact in
    float32: the result does not depend on how the matrix product is ordered or threaded.
    """
    if len(before.points) == 0 or len(after.points) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    a, b = before.descriptors, after.descriptors
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    nearest = squared.argmin(1)
    best, second = np.partition(squared, 1, axis=1)[:, :2].T
    kept = np.flatnonzero(best < ratio * ratio * second)
    return kept, nearest[kept]


def register_pair(
    before: Features, after: Features, gray_before: np.ndarray, gray_after: np.ndarray, config: StabilizeConfig
) -> Pair:
    """The similarity that takes frame `after` onto `before`, with its evidence.

    Raises:
        BadVideo: stabilize, too_few_matches: there is nothing to fit, or nothing fits. Never the identity instead.
    """
    index_before, index_after = match(before, after, config.ratio)
    num_matches = len(index_before)
    if num_matches < config.min_matches:
        raise BadVideo("stabilize", "too_few_matches", f"{num_matches} matches; at least {config.min_matches}")
    source, target = after.points[index_after], before.points[index_before]
    affine, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=config.ransac_px, confidence=0.999
    )
    if affine is None:
        raise BadVideo("stabilize", "too_few_matches", f"no similarity fits any of {num_matches} matches")
    kept = inliers.ravel().astype(bool)
    errors_px = source[kept] @ affine[:, :2].T + affine[:, 2] - target[kept]
    return Pair(
        transform=np.vstack([affine, IDENTITY[2]]),
        residual_px=float(np.sqrt((errors_px**2).sum(1).mean())) if kept.any() else float("inf"),
        inlier_ratio=float(kept.mean()),
        num_matches=num_matches,
        photometric=photometric_residual(gray_before, gray_after, affine),
    )


def photometric_residual(before: np.ndarray, after: np.ndarray, affine: np.ndarray) -> float:
    """Mean absolute difference, 0..255, of `before` and `after` warped onto it where both have pixels; else 255."""
    size = before.shape[1], before.shape[0]
    warped = cv2.warpAffine(after, affine, size, flags=cv2.INTER_LINEAR)
    valid = cv2.warpAffine(np.full_like(after, 255), affine, size, flags=cv2.INTER_LINEAR) == 255
    if not valid.any():
        return 255.0
    return float(cv2.absdiff(before, warped)[valid].mean())


def scale_of(transform: np.ndarray) -> float:
    """The zoom factor of a similarity (3, 3)."""
    return float(np.hypot(transform[0, 0], transform[1, 0]))


def compose(pairs: list[Pair]) -> np.ndarray:
    """(T, 3, 3): maps each frame onto the first one, from the T - 1 pairs; the first is the identity."""
    transforms = [IDENTITY]
    for pair in pairs:
        transforms.append(transforms[-1] @ pair.transform)
    return np.stack(transforms)


def _check(pair: Pair, index: int, config: StabilizeConfig) -> None:
    """Raise BadVideo naming the first test that frame `index` fails against the frame before it."""
    at = f"frame {index}"
    scale = scale_of(pair.transform)
    if pair.inlier_ratio < config.min_inlier_ratio:
        detail = f"{pair.inlier_ratio:.2f} of {pair.num_matches} matches at {at}; at least {config.min_inlier_ratio:g}"
        raise BadVideo("stabilize", "low_inlier_ratio", detail)
    if pair.residual_px > config.max_residual_px:
        detail = f"{pair.residual_px:.2f} px at {at}; at most {config.max_residual_px:g}"
        raise BadVideo("stabilize", "large_residual", detail)
    if not 1 / config.max_scale_step <= scale <= config.max_scale_step:
        raise BadVideo("stabilize", "scale_jump", f"zoom {scale:.3f} at {at}; at most {config.max_scale_step:g}")
    if pair.photometric > config.max_photometric:
        detail = f"{pair.photometric:.1f} at {at}; at most {config.max_photometric:g}"
        raise BadVideo("stabilize", "photometric", detail)
