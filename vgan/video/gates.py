"""The last word on a clip: bounds on the scores that were stored with it. Nothing is decoded to ask again."""

from __future__ import annotations

import math

import numpy as np

from vgan.config import GateConfig
from vgan.records import Evidence

Bound = tuple[str, float, float, bool]  # reason, value, bound, whether the bound is an upper one


def verdict(evidence: Evidence, config: GateConfig) -> tuple[str, str] | None:
    """(reason, detail) of the first bound that a clip's scores break, None if they keep all.

    A clip that was kept as it was (`evidence.stabilized` is False) has no registration scores; what it has is judged.
    """
    for reason, value, bound, upper in _bounds(evidence, config):
        if not (value <= bound if upper else value >= bound):  # so that no NaN passes
            return reason, f"{value:.3g}; at {'most' if upper else 'least'} {bound:g}"
    return None


def broken(scores: Evidence, config: GateConfig) -> np.ndarray:
    """Whether each of many clips breaks a bound, as `verdict` says of one: bool (N,). The scores are arrays (N,)."""
    kept = np.ones(np.shape(scores.motion), bool)
    for _, value, bound, upper in _bounds(scores, config):
        kept &= value <= bound if upper else value >= bound
    return ~kept


def strain(evidence: Evidence, config: GateConfig) -> float:
    """How near a clip is to being rejected: the largest share of any bound that it uses up, above 1 if rejected."""
    shares = [0.0]
    for reason, value, bound, upper in _bounds(evidence, config):
        one = 1.0 if reason in ("scale_jump", "large_zoom") else 0.0  # these count from no zoom at all
        part, whole = (value - one, bound - one) if upper else (bound, value)
        shares.append(part / whole if whole > 0 else math.inf if part > 0 else 0.0)
    return max(shares)


def _bounds(e: Evidence, c: GateConfig) -> list[Bound]:
    """Every bound that is not switched off, in the order in which they are asked."""
    bounds: list[Bound] = [
        ("low_inlier_ratio", e.inlier_ratio, c.min_inlier_ratio, False),
        ("large_residual", e.residual_px, c.max_residual_px, True),
        ("scale_jump", e.scale_step, c.max_scale_step, True),
        ("photometric", e.photometric, c.max_photometric, True),
        ("dissolve", e.dissolve, c.max_dissolve, True),
        ("large_zoom", e.zoom, c.max_zoom, True),
        ("drift", e.drift_px, c.max_drift_px, True),
        ("too_much_fill", e.filled_fraction, c.max_filled, True),
        ("still", e.motion, c.min_motion, False),
        ("restless", e.motion, c.max_motion, True),
    ]
    return [bound for bound in bounds if bound[0] not in c.off]
