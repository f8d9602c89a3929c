"""Quality filters: bounds on the scores stored with every clip, which can be changed without decoding."""

from __future__ import annotations

import math

import numpy as np

from vgan.records import ClipScores
from vgan.video.config import FilterConfig

PERFECT_AT_1 = ("scale_jump", "large_zoom", "low_agreement", "low_inlier_ratio")  # no zoom, and all points agree
Bound = tuple[str, float, float, bool]  # reason, value, bound, True for an upper bound


def first_violation(scores: ClipScores, config: FilterConfig) -> tuple[str, str] | None:
    """Return (reason, detail) of the first bound that a clip's scores violate, None if they satisfy all.

    A clip that was not stabilized (`scores.stabilized` is False) has default registration scores, which satisfy the
    bounds; its other scores are tested.
    """
    for reason, value, bound, upper in _bounds(scores, config):
        if not (value <= bound if upper else value >= bound):  # NaN violates every bound
            return reason, f"{value:.3g}; at {'most' if upper else 'least'} {bound:g}"
    return None


def violation_mask(scores: ClipScores, config: FilterConfig) -> np.ndarray:
    """Return the mask (N,) bool of clips that violate a bound, as `first_violation` for scores that are arrays (N,)."""
    accepted = np.ones(np.shape(scores.motion), bool)
    for _, value, bound, upper in _bounds(scores, config):
        accepted &= value <= bound if upper else value >= bound
    return ~accepted


def bound_utilization(scores: ClipScores, config: FilterConfig) -> float:
    """Return the largest utilization of any bound by a clip's scores: 0 far from all bounds, above 1 if rejected."""
    return float(_utilization(scores, config))


def quality(scores: ClipScores) -> np.ndarray:
    """Return the quality (N,) of clips in 0..1 for scores that are arrays (N,).

    It is 1 / (1 + u) with the largest utilization u of the bounds of the preset "strict": 1 is perfect, 0.5 is exactly
    at a bound, and less is rejected by "strict".
    """
    return 1 / (1 + _utilization(scores, FilterConfig()))


def _utilization(scores: ClipScores, config: FilterConfig) -> np.ndarray:
    """Return the largest utilization of any bound for scores that are arrays of one shape, or numbers."""
    largest = np.zeros(np.shape(scores.motion))
    for reason, value, bound, upper in _bounds(scores, config):
        if reason in PERFECT_AT_1:
            excess = value - 1, bound - 1
            numerator, denominator = np.broadcast_arrays(*(excess if upper else (-excess[0], -excess[1])))
        else:
            numerator, denominator = np.broadcast_arrays(*((value, bound) if upper else (bound, value)))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(denominator > 0, numerator / denominator, np.where(numerator > 0, math.inf, 0.0))
        largest = np.maximum(largest, ratio)
    return largest


def _bounds(e: ClipScores, c: FilterConfig) -> list[Bound]:
    """List the enabled bounds in the order in which they are applied."""
    max_residual_motion = np.maximum(c.max_residual_motion_px, c.max_residual_motion_share * e.source_motion_px)
    is_failed = np.equal(e.registration, "failed") * 1.0
    bounds: list[Bound] = [
        ("unregistered", is_failed, 1.0 if c.keep_unregistered else 0.0, True),
        ("residual_motion", e.residual_motion_px, max_residual_motion, True),
        ("low_agreement", e.agreement, c.min_agreement, False),
        ("distortion", e.distortion_px, c.max_distortion_px, True),
        ("low_inlier_ratio", e.inlier_ratio, c.min_inlier_ratio, False),
        ("large_residual", e.residual_px, c.max_residual_px, True),
        ("scale_jump", e.scale_step, c.max_zoom_step, True),
        ("photometric", e.photometric, c.max_photometric_error, True),
        ("dissolve", e.dissolve, c.max_dissolve, True),
        ("large_zoom", e.zoom, c.max_zoom, True),
        ("drift", e.drift_px, c.max_drift_px, True),
        ("too_much_fill", e.filled_fraction, c.max_filled_fraction, True),
        ("still", e.motion, c.min_motion, False),
        ("restless", e.motion, c.max_motion, True),
    ]
    return [bound for bound in bounds if bound[0] not in c.disabled]
