"""Distances between two sets of clips, from their features: Fréchet and kernel, with names that state the protocol.

Fréchet: https://arxiv.org/abs/1706.08500; of video features, FVD: https://arxiv.org/abs/1812.01717. Kernel:
https://arxiv.org/abs/1801.01401; of video features, KVD. All in float64.

The Fréchet distance is biased upwards, the more the fewer the clips: distances compare only at equal numbers of clips,
which therefore stand in the name. The kernel distance is unbiased at any number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vgan.errors import InputError

_WORD = re.compile(r"[A-Za-z0-9.-]+")


class Interval(NamedTuple):
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def protocol_name(metric: str, *, num: int, extractor: str, resolution: int, reference: str, num_frames: int) -> str:
    """The name under which a distance is stored, e.g. fvd256_i3d400-r112_weizmann_32f: all that changes its value.

    Args:
        metric: fvd or kvd.
        num: clips in each of the two sets.
        extractor: i3d400 for the 400 logits of `vgan.metrics.i3d`.
        resolution: pixels a side that the extractor sees; 224 in published figures.
        reference: the set of real clips.
        num_frames: frames of a clip.

    Raises:
        InputError: a word is empty or holds anything but letters, digits, points and hyphens.
    """
    for role, word in (("metric", metric), ("extractor", extractor), ("reference", reference)):
        if not _WORD.fullmatch(word):
            raise InputError(f"a metric's {role} is named in letters, digits, points and hyphens, got {word!r}")
    return f"{metric}{num}_{extractor}-r{resolution}_{reference}_{num_frames}f"


def statistic_name(metric: str, *, num: int, resolution: int, num_frames: int) -> str:
    """The name of what is measured on one set's pixels alone, without a reference, e.g. motion256_r64_32f."""
    return f"{metric}{num}_r{resolution}_{num_frames}f"


def frechet_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """|m - n|^2 + Tr(S + R - 2 (S R)^(1/2)) of the means and unbiased covariances of features (N, D) and (M, D).

    With S = A^T A and R = B^T B, the eigenvalues of S R are the squared singular values of A B^T. Taking those of the
    triangular factors of the centred features, no covariance is formed and no root can turn complex or negative.
    """
    mean_real, factor_real = _gaussian(real)
    mean_drawn, factor_drawn = _gaussian(drawn)
    overlap = np.linalg.svd(factor_real @ factor_drawn.T, compute_uv=False).sum()
    spread = (factor_real**2).sum() + (factor_drawn**2).sum() - 2 * overlap
    return float(((mean_real - mean_drawn) ** 2).sum() + spread)


def kernel_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) under (x.y / D + 1)^3, unbiased, so it may be < 0.

    Over all pairs, where the published estimator averages over random blocks: the same expectation, less noise.
    """
    x, y = _features(real), _features(drawn)
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def frechet_interval(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 200) -> Interval:
    """The Fréchet distance and a 95 % interval for its mean over new sets of the same two sizes (basic bootstrap).

    Resampled sets repeat clips, which adds the estimator's bias a second time: percentiles of the resampled distances
    would lie above the distance itself. Only their spread about their own mean is used. With fewer clips than features
    that spread is too large: at 256 clips of 400 normal features the interval is 1.9 times as wide as it need be.
    """
    return _interval(frechet_distance, real, drawn, seed, repeats)


def kernel_interval(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 200) -> Interval:
    """The kernel distance and a 95 % interval, as `frechet_interval`: a clip's pairs with its own copies add a bias."""
    return _interval(kernel_distance, real, drawn, seed, repeats)


def frechet_bias(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 20) -> float:
    """How much of the Fréchet distance its finite number of clips accounts for, roughly.

    The bias falls about as 1/N (https://arxiv.org/abs/1911.07023), so that of N clips is what halves of the two sets
    have more: their mean distance, over `repeats` draws, less the distance itself. With fewer clips than features the
    bias falls more slowly, and this is too little.
    """
    rng = np.random.default_rng(seed)
    halves = [frechet_distance(_half(real, rng), _half(drawn, rng)) for _ in range(repeats)]
    return float(np.mean(halves)) - frechet_distance(real, drawn)


def mean_interval(values: np.ndarray, seed: int, repeats: int = 1000) -> Interval:
    """Mean of values (N,), one a clip, and its 95 % bootstrap interval; NaNs are left out, NaN if nothing is left."""
    found = values[~np.isnan(values)].astype(np.float64)
    if not len(found):
        return Interval(np.nan, np.nan, np.nan)
    picks = np.random.default_rng(seed).integers(len(found), size=(repeats, len(found)))
    low, high = np.quantile(found[picks].mean(axis=1), (0.025, 0.975))
    return Interval(float(found.mean()), float(low), float(high))


def _interval(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int
) -> Interval:
    rng = np.random.default_rng(seed)
    resampled = [distance(_resample(real, rng), _resample(drawn, rng)) for _ in range(repeats)]
    value = distance(real, drawn)
    low, high = np.quantile(resampled, (0.025, 0.975)) - np.mean(resampled)
    return Interval(value, value - float(high), value - float(low))


def _half(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return features[rng.permutation(len(features))[: max(2, len(features) // 2)]]


def _resample(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return features[rng.integers(len(features), size=len(features))]


def _features(features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"a distance needs features of at least 2 clips in each set, got an array {features.shape}")
    if not np.isfinite(features).all():
        raise InputError("a distance needs finite features, got NaN or infinity")
    return features.astype(np.float64)


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and A (min(N, D), D) with A^T A the unbiased covariance."""
    x = _features(features)
    mean = x.mean(0)
    return mean, np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(square: np.ndarray) -> float:
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))
