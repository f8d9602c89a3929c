"""The baseline's prior: a Gaussian mixture over an autoencoder's codes (paper section 3.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import safetensors
import safetensors.numpy

from vgan.errors import InputError

# Variance a component keeps at least, over that of all codes: a component of one clip still draws others than that one.
MIN_VARIANCE = 0.01


@dataclass(frozen=True)
class LatentMixture:
    """A mixture of K Gaussians over codes of length Z, all float32.

    The Gaussians share their axes, the principal ones of all codes, and differ in how far they reach along each. Fitted
    with 256 of them to 2,277 clips of real video, 605 clips of other videos have a mean log-likelihood of -41 nats (-46
    to -37 by seed). With the codes' own dimensions as axes it is -131, with a covariance for each Gaussian -151, both
    at their best regularization of four; the last takes 1,318,656 numbers, this 61,456.
    """

    weights: np.ndarray  # (K,), sum 1
    means: np.ndarray  # (K, Z)
    reaches: np.ndarray  # (K, Z), standard deviations along the axes over the axes' lengths, above 0
    axes: np.ndarray  # (Z, Z), an axis a column, as long as the standard deviation of all codes along it


def fit_mixture(codes: np.ndarray, components: int = 256, seed: int = 0) -> LatentMixture:
    """Fit a mixture to codes (N, Z) float32 by expectation maximization, from k-means.

    Args:
        codes: at least two.
        components: K, the paper's 256; fewer where there are fewer codes.
        seed: of k-means.
    """
    from sklearn.mixture import GaussianMixture  # takes a second to import, which sampling does not need

    codes = codes.astype(np.float64)
    z_size = codes.shape[1]
    variances, directions = np.linalg.eigh(np.cov(codes, rowvar=False).reshape(z_size, z_size))  # ascending
    lengths = np.sqrt(np.maximum(variances, max(1e-6 * variances[-1], 1e-12)))  # with few codes some are flat
    centre = codes.mean(axis=0)
    found = GaussianMixture(
        min(components, len(codes)), covariance_type="diag", reg_covar=MIN_VARIANCE, random_state=seed
    ).fit((codes - centre) @ directions / lengths)
    axes = directions * lengths
    arrays = (found.weights_, centre + found.means_ @ axes.T, np.sqrt(found.covariances_), axes)
    return LatentMixture(*(np.ascontiguousarray(array, np.float32) for array in arrays))


def sample(mixture: LatentMixture, num: int, seed: int = 0) -> np.ndarray:
    """Codes (num, Z) float32 drawn from a mixture."""
    rng = np.random.default_rng(seed)
    weights = mixture.weights.astype(np.float64)
    chosen = rng.choice(len(weights), num, p=weights / weights.sum())
    steps = mixture.reaches[chosen] * rng.standard_normal(mixture.reaches[chosen].shape, np.float32)
    return mixture.means[chosen] + steps @ mixture.axes.T


def mixture_bytes(mixture: LatentMixture) -> bytes:
    """A mixture as a safetensors file."""
    return safetensors.numpy.save(asdict(mixture))


def read_mixture(data: bytes, origin: str) -> LatentMixture:
    """A mixture out of a safetensors file's bytes.

    Raises:
        InputError: it holds none.
    """
    try:
        mixture = LatentMixture(**safetensors.numpy.load(data))
    except (safetensors.SafetensorError, TypeError) as fault:
        raise InputError(f"cannot read a mixture from {origin!r}: {fault}") from fault
    shapes = [array.shape for array in (mixture.weights, mixture.reaches, mixture.axes)]
    if shapes != [mixture.means.shape[:1], mixture.means.shape, 2 * mixture.means.shape[-1:]]:
        raise InputError(f"cannot read a mixture from {origin!r}: its arrays do not fit each other")
    return mixture
