"""Preset "adaptive": test hypotheses about the camera's motion by the motion that remains in the clip.

1. If the window has still texture and the rest of the picture moves as one: a camera that moves behind burnt-in
   graphics.
2. A camera that moves.
3. If that does not give a steady clip: a camera that stands still.

The clip with the least global motion is used. If still texture could be graphics, the rest of the picture must be
steady too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video.config import StabilizeConfig
from vgan.video.stabilization import adaptive_registration
from vgan.video.stabilization.clip_scores import compute_scores, frame_differences, moving_fraction, with_motion
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.global_motion import GlobalMotion, measure_global_motion
from vgan.video.stabilization.point_tracks import overlay_mask
from vgan.video.stabilization.registration import Registration
from vgan.video.stabilization.rendering import center_crop, render

STEADY_PX, STEADY_AGREEMENT = 0.15, 0.5  # of a clip for which no other hypothesis is tested
# A camera that stood still must explain the window better than its registration by so much: held ones move a little.
STILL_ADVANTAGE_PX = 0.15
# Burnt-in graphics are suspected if the rest of the picture, at least BEHIND_TEXTURED of its blocks, moves as one.
BEHIND_PX, BEHIND_AGREEMENT, BEHIND_TEXTURED = 0.25, 0.4, 0.15
BEHIND_FAST_PX = 1.5  # motion that is beyond the range of the measure, so that its blocks need not agree
BEHIND_STEADY_PX, BEHIND_STEADY_AGREEMENT = 0.35, 0.6  # of the picture around the graphics after registration
STATIC_PX = 0.2  # maximum global motion of a clip whose camera stood still, pixels at 128 px


@dataclass(frozen=True)
class Candidate:
    """A clip of a window by one hypothesis about the camera's motion.

    Attributes:
        clip: (T, size, size, 3) uint8.
        covered: (T, size, size) bool, False where pixels are filled.
        registration: transforms of the window's frames; None if the hypothesis is a camera that stood still.
        motion: global motion that remains in the clip.
        overlay: share of the textured pixels that was excluded as burnt-in graphics, 0..1.
    """

    clip: np.ndarray
    covered: np.ndarray
    registration: Registration | None
    motion: GlobalMotion
    overlay: float = 0.0

    @property
    def is_steady(self) -> bool:
        """Return True if nothing better is to be expected from another hypothesis."""
        return self.motion.rms_px <= STEADY_PX and self.motion.agreement >= STEADY_AGREEMENT


def stabilize(
    frames: np.ndarray, grays: np.ndarray, config: StabilizeConfig, size: int
) -> tuple[np.ndarray, ClipScores]:
    """Stabilize a window by the hypothesis that leaves the least global motion.

    Args:
        frames: (T, H, W, 3) uint8.
        grays: the same frames, (T, H, W) uint8.
        config: settings of the registration.
        size: height and width of the clip, pixels.

    Returns:
        Clip (T, size, size, 3) uint8, and its scores; registration "failed" if no hypothesis explains the window.
    """
    height, width = grays.shape[1:]
    square = _center_square(grays)
    source = measure_global_motion(square)
    mask, share = overlay_mask(grays)
    if mask is not None and not _moves_as_one(measure_global_motion(square, ~_center_square(_full_size(mask, grays)))):
        mask = None
    best = None
    if mask is not None:
        best = _registered(frames, grays, config, size, mask, share)
    if best is None or not _is_steady_behind(best.motion):
        best = _registered(frames, grays, config, size)
        if best is None or (not best.is_steady and source.rms_px < best.motion.rms_px - STILL_ADVANTAGE_PX):
            best = _unmoved(frames, size, source)
        if mask is not None:
            best = _judged_behind(best, mask, height, width)
    scores = replace(_scores_of(best, height, width), source_motion_px=source.rms_px)
    return best.clip, scores


def _judged_behind(candidate: Candidate, mask: np.ndarray, height: int, width: int) -> Candidate:
    """Return the candidate with the motion of the picture around graphics (H // 2, W // 2) bool, if that moves more."""
    transforms = candidate.registration.transforms if candidate.registration else IDENTITY[None]
    around = ~_warped_mask(mask, transforms, height, width, len(candidate.clip[0])) & candidate.covered
    behind = measure_global_motion(candidate.clip, around)
    if behind.rms_px > candidate.motion.rms_px and _moves_as_one(behind):
        return replace(candidate, motion=behind)
    return candidate


def _moves_as_one(motion: GlobalMotion) -> bool:
    """Return True if the picture around still texture moves like a scene and not like single objects."""
    is_coherent = motion.agreement >= BEHIND_AGREEMENT or motion.rms_px >= BEHIND_FAST_PX
    return motion.rms_px > BEHIND_PX and motion.textured >= BEHIND_TEXTURED and is_coherent


def _is_steady_behind(motion: GlobalMotion) -> bool:
    """Return True if the registration of the picture around the graphics made it steady."""
    return motion.rms_px <= BEHIND_STEADY_PX and motion.agreement >= BEHIND_STEADY_AGREEMENT


def _center_square(images: np.ndarray) -> np.ndarray:
    """Crop images (T, H, W) to their center square."""
    height, width = images.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def _full_size(mask: np.ndarray, grays: np.ndarray) -> np.ndarray:
    """Enlarge a mask (H // 2, W // 2) to that of the images (T, H, W), (1, H, W) bool."""
    shape = grays.shape[2], grays.shape[1]
    return cv2.resize(mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)[None] > 0


def _unmoved(frames: np.ndarray, size: int, motion: GlobalMotion) -> Candidate:
    """Crop and downscale a window (T, H, W, 3) uint8: the clip of a camera that stood still, with its motion."""
    clip, covered = render(frames, np.tile(IDENTITY, (len(frames), 1, 1)), size)
    return Candidate(clip, covered, None, motion)


def _registered(
    frames: np.ndarray,
    grays: np.ndarray,
    config: StabilizeConfig,
    size: int,
    mask: np.ndarray | None = None,
    overlay: float = 0.0,
) -> Candidate | None:
    """Register, render and measure a window; None if it cannot be registered.

    Args:
        frames: (T, H, W, 3) uint8.
        grays: the same frames, (T, H, W) uint8.
        config: settings of the registration.
        size: height and width of the clip, pixels.
        mask: burnt-in graphics (H // 2, W // 2) bool, neither registered nor measured; None: none.
        overlay: share of the textured pixels in `mask`, 0..1.
    """
    try:
        registration = adaptive_registration.register(grays, config, mask)
        clip, covered = render(frames, registration.transforms, size)
    except (VideoError, np.linalg.LinAlgError):  # LinAlgError: a homography without an inverse
        return None
    measured = covered
    if mask is not None:
        height, width = grays.shape[1:]
        measured = covered & ~_warped_mask(mask, registration.transforms, height, width, size)
    return Candidate(clip, covered, registration, measure_global_motion(clip, measured), overlay)


def _warped_mask(mask: np.ndarray, transforms: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Return where the pixels of a mask (H // 2, W // 2) of all frames are in their clip, (T, size, size) bool."""
    full = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    to_clip = center_crop(height, width, size)
    warped = [
        cv2.warpPerspective(full, to_clip @ transform, (size, size), flags=cv2.INTER_LINEAR) for transform in transforms
    ]
    return np.stack(warped) > 0


def _scores_of(candidate: Candidate, height: int, width: int) -> ClipScores:
    """Compute the scores of the chosen candidate of a window of `height` x `width` pixels."""
    registration = candidate.registration
    if registration is None:
        differences = frame_differences(candidate.clip)
        scores = ClipScores(
            registration="static" if candidate.motion.rms_px <= STATIC_PX else "failed",
            photometric=max(differences),
            motion=float(np.mean(differences)),
            moving_fraction=moving_fraction(candidate.clip),
            stabilized=False,
        )
    else:
        scores = compute_scores(registration, height, width, candidate.clip, candidate.covered)
        kind = "homography" if registration.num_homographies else "similarity"
        scores = replace(scores, registration=kind, overlay=candidate.overlay)
    return with_motion(scores, candidate.motion)
