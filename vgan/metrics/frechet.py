"""Fréchet and kernel distances between the features of two sets of clips, with names that state the protocol.

Fréchet distance: https://arxiv.org/abs/1706.08500; of video features, FVD: https://arxiv.org/abs/1812.01717. Kernel
distance: https://arxiv.org/abs/1801.01401; of video features, KVD. Both are computed in float64.

The Fréchet distance has an upward bias that grows as the number of clips falls. Distances are therefore comparable only
at equal numbers of clips, which are part of the name. The kernel distance is unbiased at any number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vgan.bootstrap import percentile_interval
from vgan.errors import InputError

_WORD = re.compile(r"[A-Za-z0-9.-]+")


class Interval(NamedTuple):
    """A value and the bounds of its 95 % confidence interval; the bounds are NaN if there is no interval."""

    value: float
    low: float
    high: float


def protocol_name(metric: str, *, num: int, extractor: str, resolution: int, reference: str, num_frames: int) -> str:
    """Return the name of a distance, which contains every setting that changes its value.

    An example is fvd256_i3d400-r112_weizmann_32f.

    Args:
        metric: fvd or kvd.
        num: number of clips in each of the two sets.
        extractor: i3d400 for the 400 logits of `vgan.metrics.i3d`.
        resolution: height and width of the input of the extractor, pixels; 224 in published results.
        reference: name of the set of real clips.
        num_frames: frames per clip.

    Raises:
        InputError: metric, extractor or reference is empty or holds other than letters, digits, points, hyphens.
    """
    for role, word in (("metric", metric), ("extractor", extractor), ("reference", reference)):
        if not _WORD.fullmatch(word):
            raise InputError(f"a metric's {role} must consist of letters, digits, points and hyphens, got {word!r}")
    return f"{metric}{num}_{extractor}-r{resolution}_{reference}_{num_frames}f"


def statistic_name(metric: str, *, num: int, resolution: int, num_frames: int) -> str:
    """Return the name of a statistic of the pixels of one set of clips, e.g. motion256_r64_32f."""
    return f"{metric}{num}_r{resolution}_{num_frames}f"


def frechet_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """Compute the Fréchet distance of features (N, D) and (M, D), each of at least 2 finite rows.

    It is |m - n|^2 + Tr(S + R - 2 (S R)^(1/2)) of the means m, n and the unbiased covariances S, R. With S = A^T A and
    R = B^T B, the eigenvalues of S R are the squared singular values of A B^T. A and B are the triangular factors of
    the centered features, so no covariance matrix is formed and no root becomes complex or negative.

    Raises:
        InputError: the features have another shape, or are not finite.
    """
    mean_real, factor_real = _mean_and_factor(real)
    mean_drawn, factor_drawn = _mean_and_factor(drawn)
    overlap = np.linalg.svd(factor_real @ factor_drawn.T, compute_uv=False).sum()
    trace = (factor_real**2).sum() + (factor_drawn**2).sum() - 2 * overlap
    return float(((mean_real - mean_drawn) ** 2).sum() + trace)


def kernel_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """Compute the squared maximum mean discrepancy of features (N, D) and (M, D) with the kernel (x.y / D + 1)^3.

    The estimator is unbiased, so the result may be negative. It uses all pairs, whereas the published one averages over
    random blocks: the expectation is the same, the variance lower.

    Raises:
        InputError: the features have another shape, or are not finite.
    """
    x, y = _check_features(real), _check_features(drawn)
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def frechet_interval(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 200) -> Interval:
    """Compute the Fréchet distance and a 95 % bootstrap interval for its mean over new sets of the same sizes.

    Resampled sets repeat clips, which adds the bias of the estimator a second time: percentiles of the resampled
    distances would be above the distance itself. Therefore only their deviation from their own mean is used. With fewer
    clips than features that deviation is too large: at 256 clips of 400 normal features the interval is 1.9 times as
    wide as necessary.
    """
    return _interval(frechet_distance, real, drawn, seed, repeats)


def kernel_interval(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 200) -> Interval:
    """Compute the kernel distance and a 95 % bootstrap interval by the method of `frechet_interval`.

    Here the bias of resampled sets comes from pairs of a clip with its own copies.
    """
    return _interval(kernel_distance, real, drawn, seed, repeats)


def frechet_bias(real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int = 20) -> float:
    """Estimate the bias of the Fréchet distance due to the finite number of clips.

    The bias falls approximately as 1/N (https://arxiv.org/abs/1911.07023), so the bias at N clips equals the increase
    of the distance between random halves of the two sets: the mean distance of `repeats` random halves minus the
    distance itself. With fewer clips than features the bias falls more slowly, and the result is too low.
    """
    rng = np.random.default_rng(seed)
    halves = [frechet_distance(_random_half(real, rng), _random_half(drawn, rng)) for _ in range(repeats)]
    return float(np.mean(halves)) - frechet_distance(real, drawn)


def mean_interval(values: np.ndarray, seed: int, repeats: int = 1000) -> Interval:
    """Compute the mean of values (N,), one per clip, and its 95 % bootstrap interval; NaN values are ignored.

    Mean and interval are NaN if there are no other values.
    """
    valid = values[~np.isnan(values)].astype(np.float64)
    if not len(valid):
        return Interval(np.nan, np.nan, np.nan)
    picks = np.random.default_rng(seed).integers(len(valid), size=(repeats, len(valid)))
    return Interval(float(valid.mean()), *percentile_interval(valid[picks].mean(axis=1)))


def _interval(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, drawn: np.ndarray, seed: int, repeats: int
) -> Interval:
    """Compute a distance and its basic bootstrap interval, corrected for the bias of resampled sets."""
    rng = np.random.default_rng(seed)
    resampled = [distance(_resample(real, rng), _resample(drawn, rng)) for _ in range(repeats)]
    value = distance(real, drawn)
    low, high = np.subtract(percentile_interval(resampled), np.mean(resampled))
    return Interval(value, value - float(high), value - float(low))


def _random_half(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random half of the rows, at least 2."""
    return features[rng.permutation(len(features))[: max(2, len(features) // 2)]]


def _resample(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample as many rows with replacement."""
    return features[rng.integers(len(features), size=len(features))]


def _check_features(features: np.ndarray) -> np.ndarray:
    """Return features as float64, or raise InputError if they are not (N, D), finite, N at least 2."""
    if features.ndim != 2 or len(features) < 2:
        raise InputError(
            f"a distance needs features (N, D) of at least 2 clips in each set, got shape {features.shape}"
        )
    if not np.isfinite(features).all():
        raise InputError("a distance needs finite features, got NaN or infinity")
    return features.astype(np.float64)


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean (D,) and A (min(N, D), D) such that A^T A is the unbiased covariance."""
    x = _check_features(features)
    mean = x.mean(0)
    return mean, np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the polynomial kernel of all pairs, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(square: np.ndarray) -> float:
    """Return the mean of the elements outside of the diagonal of a square matrix."""
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))
