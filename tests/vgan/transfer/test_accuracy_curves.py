"""Points of a sweep's figures against hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.transfer.accuracy_curves import EVERY, Result, accuracies, paired_differences, relative_gains


def result(init: str, fraction: float, seed: int, num_correct: int, split: int = 1, videos: int = 20) -> Result:
    return Result(init=init, fraction=fraction, seed=seed, split=split, correct=np.arange(videos) < num_correct)


RESULTS = [
    result("random", 1.0, 0, 10), result("random", 1.0, 1, 12),
    result("vgan", 1.0, 1, 18), result("vgan", 1.0, 0, 16),
    result("vgan", 0.5, 0, 8),
]  # fmt: skip


def test_accuracies_are_means_over_seeds_inside_their_intervals() -> None:
    points = {(p.init, p.fraction): p for p in accuracies(RESULTS)}
    assert list(points) == [("vgan", 0.5), ("vgan", 1.0), ("random", 1.0)]  # the baseline last, fractions ascending
    assert points["vgan", 1.0].mean == pytest.approx(0.85)
    assert points["vgan", 1.0].seeds == (0.8, 0.9)  # sorted by seed
    for point in points.values():
        assert 0 <= point.low < point.mean < point.high <= 1


def test_accuracies_of_several_splits_are_the_mean_of_splits_whatever_their_sizes() -> None:
    both = [result("vgan", 1.0, 0, 10, split=1, videos=20), result("vgan", 1.0, 0, 90, split=2, videos=100)]
    (point,) = accuracies(both)
    assert point.mean == pytest.approx((0.5 + 0.9) / 2)
    assert point.seeds == pytest.approx((0.7,))


def test_gains_are_over_the_baseline_at_the_same_fraction() -> None:
    (gain,) = relative_gains(RESULTS)  # no baseline at one half
    assert (gain.init, gain.fraction) == ("vgan", 1.0)
    assert gain.mean == pytest.approx(0.85 / 0.55)
    assert gain.seeds == pytest.approx((1.6, 1.5))
    assert 1 < gain.low < gain.mean < gain.high


def test_gains_of_equal_runs_are_one_with_zero_width() -> None:
    same = [result("random", 1.0, s, 7 + s) for s in range(3)] + [result("twin", 1.0, s, 7 + s) for s in range(3)]
    (gain,) = relative_gains(same)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1, 1, 1))


def test_gains_over_a_baseline_of_accuracy_zero_are_omitted() -> None:
    assert relative_gains([result("random", 1.0, 0, 0), result("vgan", 1.0, 0, 5)]) == []


def test_differences_are_over_the_baseline_at_the_same_fraction() -> None:
    (difference,) = paired_differences(RESULTS)  # no baseline at one half, so no mean over fractions
    assert (difference.init, difference.fraction) == ("vgan", 1.0)
    assert difference.mean == pytest.approx(0.3)
    assert difference.seeds == pytest.approx((0.3, 0.3))
    assert 0 < difference.low < difference.mean < difference.high


def test_differences_over_all_fractions_have_narrower_intervals() -> None:
    rng = np.random.default_rng(0)
    runs = [
        Result(init=init, fraction=f, seed=s, split=1, correct=rng.random(200) < accuracy)
        for init, accuracy in (("random", 0.7), ("vgan", 0.75))
        for f in (0.25, 0.5, 1.0)
        for s in range(4)
    ]
    points = {p.fraction: p for p in paired_differences(runs)}
    assert list(points) == [0.25, 0.5, 1.0, EVERY]
    assert points[EVERY].mean == pytest.approx(np.mean([points[f].mean for f in (0.25, 0.5, 1.0)]))
    assert len(points[EVERY].seeds) == 4
    widths = {fraction: p.high - p.low for fraction, p in points.items()}
    assert widths[EVERY] < min(widths[f] for f in (0.25, 0.5, 1.0))


def test_differences_use_common_seeds_only() -> None:
    runs = [*RESULTS, result("vgan", 1.0, 2, 2), result("random", 0.5, 0, 6)]
    points = {p.fraction: p for p in paired_differences(runs)}
    assert list(points) == [0.5, 1.0]  # different seeds: no mean over fractions
    assert points[1.0].mean == pytest.approx(0.3)
    assert points[0.5].seeds == pytest.approx((0.1,))


def test_differences_of_equal_runs_are_zero_with_zero_width() -> None:
    same = [result(init, 1.0, s, 7 + s) for init in ("random", "twin") for s in range(3)]
    (difference,) = paired_differences(same)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0, 0, 0))
