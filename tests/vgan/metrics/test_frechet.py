"""Distances of features, compared with closed forms, slow reference implementations and resampling."""

import numpy as np
import pytest

from vgan.errors import InputError
from vgan.metrics.frechet import (
    frechet_bias,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
    mean_interval,
    protocol_name,
    statistic_name,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sample(rng, num, mean, covariance):
    """Return `num` features with exactly this sample mean and unbiased sample covariance."""
    x = rng.normal(size=(num, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normals_is_the_closed_form(rng):
    S, R = np.array([[4.0, 1.5], [1.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])  # they do not commute
    real, drawn = sample(rng, 50, [1.0, 2.0], S), sample(rng, 30, [-2.0, 6.0], R)
    root_trace = np.sqrt(np.trace(S @ R) + 2 * np.sqrt(np.linalg.det(S @ R)))  # of a 2 x 2 matrix
    expected = 3**2 + 4**2 + np.trace(S + R) - 2 * root_trace
    assert frechet_distance(real, drawn) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [10, 100])  # fewer and more than the features
def test_frechet_distance_equals_the_textbook_formula(rng, num):
    real, drawn = rng.normal(size=(num, 20)), rng.normal(size=(num + 5, 20)) * np.linspace(0.5, 2, 20) + 0.3
    S, R = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(S @ R).real, 0))
    expected = ((real.mean(0) - drawn.mean(0)) ** 2).sum() + np.trace(S + R) - 2 * roots.sum()
    assert frechet_distance(real, drawn) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_in_any_order_is_zero(rng):
    features = rng.normal(size=(64, 400)).astype(np.float32) * 5
    assert abs(frechet_distance(features, features[::-1])) < 1e-9 * features.var(0).sum()


def test_distances_refuse_one_clip_and_nan(rng):
    features = rng.normal(size=(8, 4))
    spoilt = np.where(features == features[3, 2], np.nan, features)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(InputError, match="at least 2"):
            distance(features, features[:1])
        with pytest.raises(InputError, match="NaN"):
            distance(features, spoilt)


def test_kernel_distance_equals_its_double_sum(rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1

    def mean_kernel(pairs):
        return np.mean([(a @ b / 3 + 1) ** 3 for a, b in pairs])

    expected = mean_kernel([(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    expected += mean_kernel([(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    expected -= 2 * mean_kernel([(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_kernel_distance_of_one_distribution_is_zero_on_average_even_for_few_clips(rng):
    distances = [kernel_distance(rng.normal(size=(6, 4)), rng.normal(size=(9, 4))) for _ in range(2000)]
    assert abs(np.mean(distances)) < 4 * np.std(distances) / np.sqrt(2000)
    shifted = [kernel_distance(rng.normal(size=(6, 4)), rng.normal(size=(9, 4)) + 1) for _ in range(200)]
    assert np.mean(shifted) > 10 * np.std(distances) / np.sqrt(200)


def test_frechet_interval_holds_the_mean_distance_of_new_sets(rng):
    def sets():
        return rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) * [0.5, 1.0, 1.5, 2.0] + 1

    mean = np.mean([frechet_distance(*sets()) for _ in range(500)])
    intervals = [frechet_interval(*sets(), seed=k, repeats=60) for k in range(50)]
    assert sum(low <= mean <= high for _, low, high in intervals) >= 42  # of 50; 95 % of them is 47.5
    assert np.mean([high - low for _, low, high in intervals]) < mean


def test_frechet_interval_repeats_with_its_seed(rng):
    real, drawn = rng.normal(size=(2, 30, 4))
    assert frechet_interval(real, drawn, seed=1, repeats=5) == frechet_interval(real, drawn, seed=1, repeats=5)
    assert frechet_interval(real, drawn, seed=1, repeats=5) != frechet_interval(real, drawn, seed=2, repeats=5)


def test_protocol_name_states_all_that_changes_the_value():
    protocol = {"num": 256, "extractor": "i3d400", "resolution": 112, "reference": "weizmann", "num_frames": 32}
    assert protocol_name("fvd", **protocol) == "fvd256_i3d400-r112_weizmann_32f"


@pytest.mark.parametrize("reference", ["", "golf course", "ucf_101", "s3://bucket"])
def test_protocol_name_refuses_words_that_blur_it(reference):
    with pytest.raises(InputError, match="reference"):
        protocol_name("fvd", num=2, extractor="i3d400", resolution=224, reference=reference, num_frames=16)


def test_kernel_interval_holds_the_mean_distance_of_new_sets(rng):
    def sets():
        return rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 0.5

    mean = np.mean([kernel_distance(*sets()) for _ in range(500)])
    intervals = [kernel_interval(*sets(), seed=k, repeats=60) for k in range(50)]
    assert sum(low <= mean <= high for _, low, high in intervals) >= 42  # of 50; 95 % of them is 47.5


def test_frechet_bias_is_about_what_equal_distributions_show(rng):
    pairs = [rng.normal(size=(2, 400, 8)) for _ in range(20)]
    shown = np.mean([frechet_distance(*pair) for pair in pairs])  # 0 for infinitely many clips
    assert np.mean([frechet_bias(*pair, seed=0) for pair in pairs]) == pytest.approx(shown, rel=0.15)


def test_mean_interval_leaves_nans_out_and_covers_the_mean(rng):
    covered = 0
    for k in range(100):
        values = np.append(rng.normal(2, 1, 50), np.nan)
        value, low, high = mean_interval(values, seed=k, repeats=200)
        assert value == pytest.approx(np.nanmean(values))
        covered += low <= 2 <= high
    assert covered >= 85
    assert np.isnan(mean_interval(np.full(3, np.nan), seed=0).value)


def test_statistic_name_states_what_was_measured():
    assert statistic_name("motion", num=256, resolution=64, num_frames=32) == "motion256_r64_32f"
