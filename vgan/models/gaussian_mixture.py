"""Gaussian mixture over the codes of the baseline autoencoder (paper section 3.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import safetensors
import safetensors.numpy

from vgan.errors import InputError

# Minimum variance of a component over that of all codes: a component fitted to one clip still samples other codes.
MIN_VARIANCE = 0.01


@dataclass(frozen=True)
class LatentMixture:
    """Mixture of K Gaussians over codes of length Z; all arrays float32.

    The Gaussians share their axes, the principal axes of all codes, and differ in their standard deviations along them.
    With K = 256 fitted to 2,277 clips of real video, 605 clips of other videos have a mean log-likelihood of -41 nats
    (-46 to -37, depending on the seed). It is -131 if the axes are the dimensions of the code, and -151 with a full
    covariance per Gaussian, each at the best of four regularization strengths; full covariances have 1,318,656
    parameters, this mixture 61,456.
    """

    weights: np.ndarray  # (K,), sum 1
    means: np.ndarray  # (K, Z)
    reaches: np.ndarray  # (K, Z), standard deviations along the axes over the lengths of the axes, above 0
    axes: np.ndarray  # (Z, Z), one axis per column, of the length of the standard deviation of all codes along it


def fit_mixture(codes: np.ndarray, components: int = 256, seed: int = 0) -> LatentMixture:
    """Fit a mixture to codes by expectation maximization, initialized by k-means (paper section 3.2).

    Args:
        codes: (N, Z) float32, N at least 2.
        components: K, 256 in the paper; at most N are fitted.
        seed: seed of k-means.
    """
    from sklearn.mixture import (
        GaussianMixture,
    )  # imported here because the import takes a second and sampling does not need it

    codes = codes.astype(np.float64)
    z_size = codes.shape[1]
    variances, directions = np.linalg.eigh(np.cov(codes, rowvar=False).reshape(z_size, z_size))  # ascending
    lengths = np.sqrt(np.maximum(variances, max(1e-6 * variances[-1], 1e-12)))  # with few codes some variances are 0
    center = codes.mean(axis=0)
    fitted = GaussianMixture(
        min(components, len(codes)), covariance_type="diag", reg_covar=MIN_VARIANCE, random_state=seed
    ).fit((codes - center) @ directions / lengths)
    axes = directions * lengths
    arrays = (fitted.weights_, center + fitted.means_ @ axes.T, np.sqrt(fitted.covariances_), axes)
    return LatentMixture(*(np.ascontiguousarray(array, np.float32) for array in arrays))


def sample(mixture: LatentMixture, num: int, seed: int = 0) -> np.ndarray:
    """Sample codes (num, Z) float32 from a mixture."""
    rng = np.random.default_rng(seed)
    weights = mixture.weights.astype(np.float64)
    components = rng.choice(len(weights), num, p=weights / weights.sum())
    offsets = mixture.reaches[components] * rng.standard_normal(mixture.reaches[components].shape, np.float32)
    return mixture.means[components] + offsets @ mixture.axes.T


def mixture_bytes(mixture: LatentMixture) -> bytes:
    """Serialize a mixture as the bytes of a safetensors file."""
    return safetensors.numpy.save(asdict(mixture))


def read_mixture(data: bytes, origin: str) -> LatentMixture:
    """Read a mixture from the bytes of a safetensors file.

    Args:
        data: content of the file.
        origin: path or URL of the file, for error messages.

    Raises:
        InputError: the bytes are not a safetensors file of a mixture, or the shapes of its arrays are inconsistent.
    """
    try:
        mixture = LatentMixture(**safetensors.numpy.load(data))
    except (safetensors.SafetensorError, TypeError) as error:
        raise InputError(f"cannot read a mixture from {origin!r}: {error}") from error
    shapes = [array.shape for array in (mixture.weights, mixture.reaches, mixture.axes)]
    if shapes != [mixture.means.shape[:1], mixture.means.shape, 2 * mixture.means.shape[-1:]]:
        raise InputError(f"cannot read a mixture from {origin!r}: the shapes of its arrays are inconsistent")
    return mixture
