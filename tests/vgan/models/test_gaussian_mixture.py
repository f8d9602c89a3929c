"""Gaussian mixture over codes: fit, samples and files."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from vgan.errors import InputError
from vgan.models.gaussian_mixture import LatentMixture, fit_mixture, mixture_bytes, read_mixture, sample

CENTRES = np.array([[8.0, 0, 0], [0, 8, 0], [0, 0, -8]])
SHARES = np.array([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Return 2,000 codes of three clusters, each with its own standard deviation."""
    rng = np.random.default_rng(0)
    cluster = rng.choice(3, 2000, p=SHARES)
    noise = rng.standard_normal((2000, 3)) * np.array([0.2, 0.5, 1.0])[cluster, None]
    return (CENTRES[cluster] + noise).astype(np.float32)


def nearest(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - CENTRES, axis=2).argmin(axis=1)


def test_fit_finds_the_clusters_and_their_shares(codes: np.ndarray) -> None:
    mixture = fit_mixture(codes, components=3)
    order = nearest(mixture.means)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(mixture.means, CENTRES[order], atol=0.1)
    np.testing.assert_allclose(mixture.weights, SHARES[order], atol=0.03)


def test_samples_are_distributed_as_the_codes_were(codes: np.ndarray) -> None:
    drawn = sample(fit_mixture(codes, components=3), 20_000, seed=1)
    assert drawn.dtype == np.float32
    cluster = nearest(drawn)
    np.testing.assert_allclose(np.bincount(cluster) / 20_000, SHARES, atol=0.03)
    for number, spread in enumerate((0.2, 0.5, 1.0)):
        result = (drawn[cluster == number] - CENTRES[number]).std()
        assert (
            spread * 0.9 < result < np.hypot(spread, 0.5) * 1.1
        )  # the minimum is a tenth of the deviation of all codes, 5


def test_one_gaussian_keeps_how_dimensions_go_together() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((5000, 1)) * [[30.0]]
    codes = np.concatenate([base, -base + rng.standard_normal((5000, 1))], axis=1).astype(np.float32)
    drawn = sample(fit_mixture(codes, components=1), 20_000)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), rtol=0.05)
    assert (drawn.sum(axis=1)).std() == pytest.approx(1.0, rel=0.05)  # against 30 for either alone


def test_samples_are_a_function_of_the_seed(codes: np.ndarray) -> None:
    mixture = fit_mixture(codes, components=2)
    assert np.array_equal(sample(mixture, 5, seed=3), sample(mixture, 5, seed=3))
    assert not np.array_equal(sample(mixture, 5, seed=3), sample(mixture, 5, seed=4))


def test_few_codes_give_as_many_gaussians_that_do_not_just_repeat_them() -> None:
    codes = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)  # fewer than dimensions, too
    mixture = fit_mixture(codes, components=256)
    assert mixture.means.shape == (6, 20)
    drawn = sample(mixture, 50)
    assert np.isfinite(drawn).all()
    assert np.linalg.norm(drawn[:, None] - codes, axis=2).min() > 0.1


def test_codes_that_are_all_the_same_are_drawn_again() -> None:
    codes = np.full((8, 4), 2.5, np.float32)
    with pytest.warns(match="distinct clusters"):
        drawn = sample(fit_mixture(codes, components=2), 10)
    np.testing.assert_allclose(drawn, 2.5, atol=1e-4)


def test_mixture_comes_back_from_its_bytes(codes: np.ndarray) -> None:
    mixture = fit_mixture(codes, components=3)
    result = read_mixture(mixture_bytes(mixture), "mixture.safetensors")
    assert np.array_equal(sample(result, 9, seed=2), sample(mixture, 9, seed=2))


def test_bytes_that_hold_no_mixture_are_bad_input() -> None:
    z = np.zeros((2, 3), np.float32)
    odd = mixture_bytes(LatentMixture(weights=np.ones(2, np.float32), means=z, reaches=z, axes=z))
    for data in (b"junk", safetensors.numpy.save({"weights": z}), odd):
        with pytest.raises(InputError, match=r"cannot read a mixture from 'there\.safetensors'"):
            read_mixture(data, "there.safetensors")
