"""Bootstrap (https://doi.org/10.1214/aos/1176344552): resampling weights and percentile intervals.

Statistics that are linear in the units take weights (`draw_counts`). Distances between sets need the resampled rows
themselves, and draw indices instead (`vgan.metrics.frechet`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_counts(num: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `num` of `num` units with replacement, `draws` times.

    Returns:
        Number of times each unit is drawn, (draws, num) int64.
    """
    if not num:
        return np.zeros((draws, 0), np.int64)
    return rng.multinomial(num, np.full(num, 1 / num), draws)


def percentile_interval(samples: np.ndarray | Sequence[float], tail: float = 0.025) -> tuple[float, float]:
    """Return the quantiles `tail` and 1 - `tail` of bootstrap samples (draws,); by default a 95 % interval."""
    low, high = np.quantile(samples, (tail, 1 - tail))
    return float(low), float(high)
