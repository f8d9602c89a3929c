"""Stabilization of a window of frames: registration, warp to the first frame, fill from the preceding frame."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video.config import StabilizeConfig
from vgan.video.stabilization import adaptive, reference
from vgan.video.stabilization.clip_scores import compute_scores, mean_frame_difference, moving_fraction, with_motion
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.global_motion import measure_global_motion
from vgan.video.stabilization.registration import register
from vgan.video.stabilization.rendering import downscale, render


def stabilize(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Remove camera motion from `frames` (T, H, W, 3) uint8.

    Every frame is mapped to the first one (paper section 3.1). With preset "off", or if registration fails and
    `config.keep_failed` is set, frames are only cropped and downscaled (`ClipScores.stabilized` is False). No clip is
    rejected because of its scores; the caller applies the bounds.

    Returns:
        Clip (T, size, size, 3) uint8, and its scores.

    Raises:
        VideoError: stage "stabilize", for preset "paper" as `register`, for preset "reference" as
            `reference.register` and `reference.render`; also reason collapsed for a homography without an inverse.
            Preset "adaptive" raises none: a window that cannot be registered has registration "failed" in its scores.
    """
    if config.preset == "off":
        return crop_only(frames, size)
    if config.preset == "adaptive":
        frames = downscale(frames, max(config.size, size))
        return adaptive.stabilize(frames, _grays(frames), config, size)
    try:
        if config.preset == "reference":
            return _by_reference(frames, size)
        return _by_paper(frames, config, size)
    except VideoError:
        if config.keep_failed:
            return crop_only(frames, size)
        raise


def crop_only(frames: np.ndarray, size: int) -> tuple[np.ndarray, ClipScores]:
    """Crop each frame to its center square and downscale it; the scores have default values for registration."""
    clip, _ = render(frames, np.tile(IDENTITY, (len(frames), 1, 1)), size)
    return clip, ClipScores(motion=mean_frame_difference(clip), moving_fraction=moving_fraction(clip), stabilized=False)


def _by_paper(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "paper"."""
    frames = downscale(frames, max(config.size, size))
    registration = register(_grays(frames), config)
    clip, covered = render(frames, registration.transforms, size)
    scores = compute_scores(registration, frames.shape[1], frames.shape[2], clip, covered)
    return clip, with_motion(scores, measure_global_motion(clip, covered))


def _by_reference(frames: np.ndarray, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "reference"."""
    registration = reference.register(frames)
    clip, covered = reference.render(frames, registration.transforms, size)
    try:
        scores = compute_scores(registration, frames.shape[1], frames.shape[2], clip, covered)
    except np.linalg.LinAlgError as error:
        raise VideoError("stabilize", "collapsed", "the composed homography has no inverse") from error
    return clip, with_motion(replace(scores, registration="homography"), measure_global_motion(clip, covered))


def _grays(frames: np.ndarray) -> np.ndarray:
    """Convert frames (T, H, W, 3) uint8 to gray images (T, H, W) uint8."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
