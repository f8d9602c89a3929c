"""What the video stage gives: clips with their registration evidence, and rejects with their reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA_VERSION = 2
VIDEO_REVISION = 2  # raised when the same video and settings give other pixels or scores (2: HDR shown as displays do)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a clip's frames were registered, worst over the clip; stored with it, so that it can be judged later."""

    residual_px: float = 0.0  # RMS re-projection error of the inliers of the worst pair, at 128 px
    inlier_ratio: float = 1.0  # of the worst pair
    num_matches: int = 0  # of the worst pair
    scale_step: float = 1.0  # largest zoom between neighbouring frames, or its inverse: at least 1
    zoom: float = 1.0  # largest zoom of any frame against the first, or its inverse: at least 1
    drift_px: float = 0.0  # of the last frame's corners, composed against direct registration, at 128 px
    photometric: float = 0.0  # mean |frame - warped previous frame| of the worst pair, 0..255
    dissolve: float = 0.0  # longer-lag score of fades and dissolves; above 1 the clip holds two scenes
    filled_fraction: float = 0.0  # of the most filled frame
    motion: float = 0.0  # mean |difference| of neighbouring stabilized frames, 0..255
    moving_fraction: float = 0.0  # share of pixels that change in the stabilized clip
    jitter_px: float = 0.0  # RMS camera movement between neighbouring frames that was removed, at 128 px
    contrast: float = 0.0  # standard deviation of gray values, mean over frames, 0..255
    frozen_fraction: float = 0.0  # share of frames equal to the one before them
    letterbox: float = 0.0  # share of the picture that was cut off as black bars
    fingerprint: str = ""  # 32 hex digits that stay alike under re-encoding; near-duplicates are found by it
    stabilized: bool = True  # False: kept as it was (preset off, or keep_failed)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One finished clip: frames (T, H, W, 3) uint8, RGB."""

    start_s: float  # of the first frame, in the source's own time
    shot: int  # counts from 0 within the source, or the segment of a long one
    frames: np.ndarray
    evidence: Evidence
    view: np.ndarray | None = None  # (224, 224, 3) uint8: the window's middle, for a scene classifier that is to come
    scenes: dict[str, Any] = field(default_factory=dict)  # columns of a dataset; empty where nobody looked


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A stretch of video (or all of it, start_s None) that gave no clip."""

    start_s: float | None
    stage: str
    reason: str
    detail: str = ""


def clip_id(source_id: str, number: int, start_s: float, config_digest: str) -> str:
    """Stable name of a clip: 16 hex digits of SHA-256 over its source, number in it, start and settings.

    The number tells clips apart that start at the same frame, as close ones do where a slow source repeats frames.
    """
    return hashlib.sha256(f"{source_id}|{number}|{start_s:.3f}|{config_digest}".encode()).hexdigest()[:16]
