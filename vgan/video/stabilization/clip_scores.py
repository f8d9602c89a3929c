"""Scores of a stabilized clip: quality of its registration, motion of the camera, and what still changes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from vgan.records import ClipScores
from vgan.video.stabilization.geometry import EVIDENCE_PX, IDENTITY, corner_distance, distortion, scale_of
from vgan.video.stabilization.global_motion import GlobalMotion
from vgan.video.stabilization.registration import Registration

MOVING = 12  # minimum change of a moving pixel, gray values: well above compression noise


def compute_scores(
    registration: Registration, height: int, width: int, clip: np.ndarray, covered: np.ndarray
) -> ClipScores:
    """Compute the scores of a registered window and its clip.

    Args:
        registration: transforms of the window's frames.
        height: height of these frames, pixels.
        width: width of these frames, pixels.
        clip: stabilized clip (T, H, W, 3) uint8.
        covered: pixels (T, H, W) bool of the clip that are not filled.
    """
    pairs = registration.pairs
    unit = EVIDENCE_PX / min(height, width)
    zooms = scale_of(registration.transforms)
    return ClipScores(
        registration="similarity",
        residual_px=max((pair.residual_px for pair in pairs), default=0.0),
        inlier_ratio=min((pair.inlier_ratio for pair in pairs), default=1.0),
        num_matches=min((pair.num_matches for pair in pairs), default=0),
        scale_step=_largest_zoom(zooms[1:] / zooms[:-1]),
        zoom=_largest_zoom(zooms),
        drift_px=registration.drift_px,
        distortion_px=unit * float(distortion(registration.transforms, height, width).max()),
        photometric=max((pair.photometric for pair in pairs), default=0.0),
        filled_fraction=1 - float(covered.mean((1, 2)).min()),
        motion=mean_frame_difference(clip),
        moving_fraction=moving_fraction(clip),
        jitter_px=camera_movement_px(registration.transforms, height, width),
        stabilized=True,
    )


def _largest_zoom(zooms: np.ndarray) -> float:
    """Return the largest zoom factor (N,) or inverse of one; inf if one is 0."""
    return float(max(zooms.max(), 1 / zooms.min())) if zooms.min() > 0 else math.inf


def with_motion(scores: ClipScores, motion: GlobalMotion) -> ClipScores:
    """Add the global motion that remains in a clip to its scores."""
    return replace(scores, residual_motion_px=motion.rms_px, agreement=motion.agreement)


def frame_differences(clip: np.ndarray) -> list[float]:
    """Return the mean absolute difference (0..255) of each pair of adjacent frames of `clip` (T, H, W, 3) uint8."""
    return [cv2.norm(after, before, cv2.NORM_L1) / after.size for before, after in pairwise(clip)]


def mean_frame_difference(clip: np.ndarray) -> float:
    """Return the mean absolute difference (0..255) of adjacent frames of `clip` (T, H, W, 3) uint8."""
    return float(np.mean(frame_differences(clip)))


def moving_fraction(clip: np.ndarray) -> float:
    """Return the share of pixels (0..1) of `clip` (T, H, W, 3) uint8 that change by more than MOVING per frame."""
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    return float(np.mean([(cv2.absdiff(after, before) > MOVING).mean() for before, after in pairwise(grays)]))


def camera_movement_px(transforms: np.ndarray, height: int, width: int) -> float:
    """Return the RMS motion of the picture's corners between adjacent frames, pixels at 128 px short side.

    Args:
        transforms: transforms (T, 3, 3) from the pixels of each frame to those of the first.
        height: height of the frames, pixels.
        width: width of the frames, pixels.
    """
    unit = EVIDENCE_PX / min(height, width)
    steps = np.linalg.inv(transforms[:-1]) @ transforms[1:]
    return unit * float(np.sqrt(np.mean(corner_distance(steps, IDENTITY, height, width) ** 2)))
