"""Camera motion of a window: SIFT matches between neighbours, refined at pixel level, then held to the first frame.

Three steps a frame, each cheap because the one before it left little to do:

1. SIFT keypoints on a small image (64 px short side), matched to those of the frame before, and a 4-DoF similarity by
   RANSAC (paper section 3.1). Found once a frame, they serve two pairs. Where they are too few, the larger image is
   searched: without that, 5 of 34 UCF101 windows were lost instead of 1.
2. Lucas-Kanade at the matched points on the larger image (128 px) takes out the error of keypoints found so small.
3. Direct alignment of the whole small image with the clip's first frame (inverse-compositional Gauss-Newton, Baker and
   Matthews 2004) takes out what 31 composed transforms add up to.

Corner error on known motion (6 px, 2 degrees, 2 %; 12 real stills, px at 128, median and 95 %) after step 1 alone: 0.48
and 1.6; after 2: 0.12 and 0.40; after 3: 0.05 and 0.15. SIFT at 128 px alone: 0.13 and 0.47, at three times the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vgan.config import StabilizeConfig
from vgan.errors import BadVideo

EVIDENCE_PX = 128  # short side of the picture that every pixel figure refers to
IDENTITY = np.eye(3)

# Less blur than SIFT's own 3 layers and 1.6: at 64 px 83 keypoints, not 70, in 1.9 ms, not 2.8 (848x480, 100 allowed).
SIFT_LAYERS, SIFT_SIGMA = 2, 1.2
SIFT_CONTRAST, SIFT_EDGE = 0.04, 10.0  # OpenCV's own

LK_WINDOW = 11  # px; 9 to 15 do equally well, 21 blurs what moves into what stands
LK_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.01)
FIT_SOFTNESS_PX = 0.5  # errors this large count a quarter

ALIGN_BLUR_PX = 1.0  # standard deviation, on the small image; without it the error is twice as large
MIN_OVERLAP = 0.4  # share of the first frame still in view; with less, chaining is the safer guess
# A larger disagreement between the chain and the first frame is a scene that has changed, not drift.
MAX_CORRECTION_PX = 1.0  # RMS of the corners
# Share of a correction that is applied. All of it, and noise of the alignment shakes scenes with depth (jitter left on
# real video 0.186 px at 1, 0.170 at a half, 0.157 at 0); none, and errors add up (known motion: 0.12 px, not 0.05).
HOLD = 0.5
MAX_ZOOM = 10.0  # beyond it nothing of the picture is left: models fitted across cuts collapse it


@dataclass(frozen=True)
class Features:
    """Keypoints of a small image: points (N, 2) float32 x, y in its pixels; descriptors (N, 128) float32."""

    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Matches:
    """What two neighbours share: points (M, 2) float32 of the inliers in the later and in the earlier small image."""

    after: np.ndarray
    before: np.ndarray
    inlier_ratio: float  # of all matches
    num_matches: int


@dataclass(frozen=True)
class Pair:
    """How well a frame fits onto the one before it."""

    residual_px: float  # RMS re-projection error of the inliers, at 128 px short side
    inlier_ratio: float
    num_matches: int
    photometric: float  # mean absolute difference after warping, 0..255


@dataclass(frozen=True)
class Registration:
    """Camera motion of a window: transforms (T, 3, 3) take the pixels of each frame as given onto the first."""

    transforms: np.ndarray
    pairs: list[Pair]  # of the frames that differ from the one before them
    drift_px: float  # corners of the last frame against its own matches with the first, RMS at 128 px; 0 if none


@dataclass(frozen=True)
class Template:
    """What images are aligned with: (h, w) float32, and its change (6, h * w) by each unknown of `align`."""

    image: np.ndarray
    jacobian: np.ndarray
    to_unit: np.ndarray  # (3, 3): pixels to coordinates about the middle, in half heights


def register(grays: np.ndarray, config: StabilizeConfig) -> Registration:
    """Where the camera looked in each of `grays` (T, H, W) uint8, relative to the first.

    A frame equal to the one before it (a slow source, resampled) costs nothing and has no pair.

    Deterministic on any number of threads: matching is exact, RANSAC starts from a fixed seed, sums have a fixed order.

    Raises:
        BadVideo: stage "stabilize": too_few_matches where two neighbours cannot be registered, never the identity
            instead; collapsed where the picture has shrunk or grown more than tenfold, so that a warp has no meaning.
    """
    scale = min(1.0, config.sift_size / min(grays.shape[1:]))
    smalls = [cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for gray in grays]
    height, width = smalls[0].shape
    unit = EVIDENCE_PX / min(height, width)  # evidence pixels in one of the small image
    detector = cv2.SIFT.create(config.num_features, SIFT_LAYERS, SIFT_CONTRAST, SIFT_EDGE, SIFT_SIGMA)
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
            least = f"at least {config.min_matches} on one similarity"
            raise BadVideo("stabilize", "too_few_matches", f"frame {t} has too few matches to the one before; {least}")
        matches = refine(grays[t - 1], grays[t], matches, scale, config.ransac_px / unit)
        step = fit_similarity(matches.after, matches.before, FIT_SOFTNESS_PX / unit)
        transform = hold(template, smalls[t], transforms[-1] @ step, unit)
        if not 1 / MAX_ZOOM < scale_of(transform) < MAX_ZOOM:
            raise BadVideo("stabilize", "collapsed", f"zoom {scale_of(transform):.3g} of frame {t} against the first")
        step = np.linalg.inv(transforms[-1]) @ transform
        pairs.append(
            Pair(
                residual_px=residual(step, matches, config.ransac_px / unit) * unit,
                inlier_ratio=matches.inlier_ratio,
                num_matches=matches.num_matches,
                photometric=photometric_residual(smalls[t - 1], smalls[t], step),
            )
        )
        transforms.append(transform)
        before = after
    enlarge = np.array([[1 / scale, 0, 0.5 / scale - 0.5], [0, 1 / scale, 0.5 / scale - 0.5], [0, 0, 1]])
    drift_px = 0.0
    matches = match_pair(first, before, config, unit)
    if matches is not None:
        matches = refine(grays[0], grays[-1], matches, scale, config.ransac_px / unit)
        direct = fit_similarity(matches.after, matches.before, FIT_SOFTNESS_PX / unit)
        drift_px = corner_distance(direct, transforms[-1], height, width) * unit
    return Registration(enlarge @ np.stack(transforms) @ np.linalg.inv(enlarge), pairs, drift_px)


def find_features(detector: cv2.SIFT, gray: np.ndarray, scale: float = 1.0) -> Features:
    """SIFT keypoints of one gray image, in pixels of the one that is `scale` of it; none at all on a blank image."""
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    points = ((points + 0.5) * scale - 0.5).astype(np.float32)
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


def match_pair(before: Features, after: Features, config: StabilizeConfig, unit: float) -> Matches | None:
    """Matches of two images that agree on one similarity, by RANSAC; None with fewer than `config.min_matches`."""
    index_before, index_after = match(before, after, config.ratio)
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
    kept = inliers.ravel() == 1
    return Matches(source[kept], target[kept], float(kept.mean()), num_matches)


def refine(before: np.ndarray, after: np.ndarray, matches: Matches, scale: float, reach_px: float) -> Matches:
    """`matches` with the later points moved to where Lucas-Kanade finds the earlier points' surroundings.

    `before` and `after` (H, W) uint8 are the images that the small ones are `scale` of. Points that are lost or move
    more than `reach_px` small pixels are dropped; where fewer than three are left, SIFT's own stand.
    """
    at_before, at_after = ((points + 0.5) / scale - 0.5 for points in (matches.before, matches.after))
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        at_before.astype(np.float32),
        at_after.astype(np.float32),
        winSize=(LK_WINDOW, LK_WINDOW),
        maxLevel=0,
        criteria=LK_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    found = (found + 0.5) * scale - 0.5
    kept = (status.ravel() == 1) & (np.hypot(*(found - matches.after).T) < reach_px)
    if kept.sum() < 3:
        return matches
    return Matches(found[kept], matches.before[kept], matches.inlier_ratio, matches.num_matches)


def fit_similarity(source: np.ndarray, target: np.ndarray, softness_px: float) -> np.ndarray:
    """(3, 3): the similarity that takes points `source` (N, 2) to `target` (N, 2), by reweighted least squares.

    With points as complex numbers it is one linear equation. Weights are Geman and McClure's.
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
    """RMS re-projection error, small pixels, of the matches that `transform` puts within `bound_px`; inf if none."""
    errors = np.hypot(*(matches.after @ transform[:2, :2].T + transform[:2, 2] - matches.before).T)
    inliers = errors[errors < bound_px]
    return float(np.sqrt((inliers**2).mean())) if len(inliers) else float("inf")


def make_template(small: np.ndarray) -> Template:
    """The first frame's small image (h, w) uint8, made ready for `align`."""
    image = _blurred(small)
    height, width = image.shape
    unit = 2 / height
    to_unit = np.array([[unit, 0, -unit * (width - 1) / 2], [0, unit, -unit * (height - 1) / 2], [0, 0, 1]])
    # Gradients by half heights; 1/8 takes the sum of Sobel's kernel out.
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order, scale=1 / (8 * unit)) for order in ((1, 0), (0, 1)))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = unit * x + to_unit[0, 2], unit * y + to_unit[1, 2]
    changes = (dx * x + dy * y, dy * x - dx * y, dx, dy, image, np.ones_like(image))
    return Template(image, np.stack([each.ravel() for each in changes]).astype(np.float32), to_unit)


def align(template: Template, small: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, float]:
    """Improve `transform` (3, 3), which takes `small` (h, w) uint8 onto `template`; and the share of it in view, 0..1.

    One step of inverse-compositional Gauss-Newton: a second one changes the error on known motion by less than 0.01 px,
    as the frame before it was aligned too. Unknowns are the similarity's four and the exposure's gain and bias; pixels
    that differ much count little.
    """
    difference = (warp(_blurred(small), transform) - template.image).ravel()
    seen = np.isfinite(difference)
    overlap = float(seen.mean())
    if overlap < MIN_OVERLAP:
        return transform, overlap
    sample = difference[seen][::4]
    bias = np.median(sample)
    softness = 3 * np.median(np.abs(sample - bias)) + 1
    difference[~seen] = bias
    weighted = template.jacobian * (seen / (1 + ((difference - bias) / softness) ** 2) ** 2)
    # einsum keeps one order of summation; a threaded matrix product need not.
    normal = np.einsum("in,jn->ij", weighted, template.jacobian)
    normal += 1e-6 * np.trace(normal) * np.eye(6)  # a blank picture has no answer: stay
    turn, skew, right, down, _, _ = np.linalg.solve(normal, np.einsum("in,n->i", weighted, difference))
    moved = np.array([[1 + turn, -skew, right], [skew, 1 + turn, down], [0, 0, 1]])
    return np.linalg.inv(template.to_unit) @ moved @ template.to_unit @ transform, overlap


def hold(template: Template, small: np.ndarray, predicted: np.ndarray, unit: float) -> np.ndarray:
    """`predicted` (3, 3), which takes a frame onto the first, drawn to where the two align if they can be compared.

    Similarities add and scale like vectors, so what lies between two of them is one as well.
    """
    aligned, overlap = align(template, small, predicted)
    correction_px = corner_distance(aligned, predicted, *small.shape) * unit
    if overlap < MIN_OVERLAP or correction_px >= MAX_CORRECTION_PX:
        return predicted
    return predicted + HOLD * (aligned - predicted)


def photometric_residual(before: np.ndarray, after: np.ndarray, transform: np.ndarray) -> float:
    """Mean absolute difference, 0..255, of `before` and `after` warped onto it where both have pixels; else 255."""
    difference = np.abs(warp(after.astype(np.float32), transform) - before)
    seen = np.isfinite(difference)
    return float(difference[seen].mean()) if seen.any() else 255.0


def warp(image: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """`image` (h, w) float32 moved by `transform` (3, 3); not a number where it has no pixels."""
    height, width = image.shape
    return cv2.warpAffine(
        image,
        transform[:2],
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )


def _blurred(small: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), ALIGN_BLUR_PX)


def scale_of(transform: np.ndarray) -> float:
    """The zoom factor of a similarity (3, 3), or of a homography's linear part."""
    return float(np.sqrt(abs(np.linalg.det(transform[:2, :2]))))


def corner_distance(a: np.ndarray, b: np.ndarray, height: int, width: int) -> float:
    """RMS distance, pixels, between where transforms `a` and `b` (3, 3) put the picture's four corners."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    at_a, at_b = a @ corners, b @ corners
    return float(np.sqrt(((at_a[:2] / at_a[2] - at_b[:2] / at_b[2]) ** 2).sum(0).mean()))
