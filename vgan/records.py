"""Results of video processing: clips with their quality scores, and rejects with their reasons."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA_VERSION = 2
# Increased when equal videos and settings give other pixels or scores. 2: HDR tone mapping; 3: damaged, interlaced and
# telecined video, slow beginnings, flashes; fingerprints equal for mirrored clips, bars of any color; preset adaptive;
# 4: homographies by USAC, source motion, borders of frames not copied where a clip is filled.
VIDEO_REVISION = 4


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Quality scores of a clip, worst over its frames; stored with it, so that bounds can be applied later."""

    # similarity, homography, static (the camera stood still), failed (it moved, unknown how) or empty (not attempted)
    registration: str = ""
    source_motion_px: float = 0.0  # RMS global motion between adjacent frames before stabilization, pixels at 128 px
    residual_motion_px: float = 0.0  # the same of the clip: what remains
    agreement: float = 1.0  # share of the textured blocks that follow this global motion, 0..1
    distortion_px: float = 0.0  # largest distance of a frame's transform from a similarity, pixels at 128 px
    overlay: float = 0.0  # share of the textured pixels excluded as burnt-in graphics, 0..1
    residual_px: float = 0.0  # RMS reprojection error of the inliers of the worst pair, pixels at 128 px
    inlier_ratio: float = 1.0  # of the worst pair
    num_matches: int = 0  # of the worst pair
    scale_step: float = 1.0  # largest zoom between adjacent frames, or its inverse: at least 1
    zoom: float = 1.0  # largest zoom of any frame relative to the first, or its inverse: at least 1
    drift_px: float = 0.0  # distance of the last frame's corners, composed to direct registration, pixels at 128 px
    photometric: float = 0.0  # mean |frame - warped previous frame| of the worst pair, 0..255
    dissolve: float = 0.0  # score of fades and dissolves; above 1 the clip contains two scenes
    filled_fraction: float = 0.0  # share of filled pixels in the frame with most of them, 0..1
    motion: float = 0.0  # mean |difference| of adjacent stabilized frames, 0..255
    moving_fraction: float = 0.0  # share of pixels that change between adjacent stabilized frames, 0..1
    jitter_px: float = 0.0  # RMS of the removed camera motion between adjacent frames, pixels at 128 px
    contrast: float = 0.0  # standard deviation of gray values, mean over frames, 0..255
    frozen_fraction: float = 0.0  # share of frames that repeat the preceding one, 0..1
    letterbox: float = 0.0  # share of the picture cropped as black bars, 0..1
    fingerprint: str = ""  # of the picture, 32 hex digits, robust to re-encoding; for near-duplicate detection
    motion_signs: str = ""  # signs of the picture's changes, 64 hex digits; tells moments of one picture apart
    stabilized: bool = True  # False: cropped only (preset off, or keep_failed)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A finished clip: frames (T, H, W, 3) uint8, RGB."""

    start_s: float  # time of the first frame on the source's clock, seconds
    shot: int  # shot index, from 0 within the source or, of a long source, within the segment
    frames: np.ndarray
    evidence: ClipScores
    view: np.ndarray | None = None  # (224, 224, 3) uint8: the window's middle frame, input of the scene classifier
    scenes: dict[str, Any] = field(
        default_factory=dict
    )  # scene columns of the dataset; empty without scene classification


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A part of a video (or all of it: start_s None) that yields no clip."""

    start_s: float | None
    stage: str
    reason: str
    detail: str = ""


def clip_id(source_id: str, number: int, start_s: float, config_digest: str) -> str:
    """Return a stable clip id: 16 hex digits of SHA-256 over source, index within it, start and settings.

    The index `number` distinguishes clips that start at the same frame, as overlapping ones of a slow source can.
    """
    return hashlib.sha256(f"{source_id}|{number}|{start_s:.3f}|{config_digest}".encode()).hexdigest()[:16]
