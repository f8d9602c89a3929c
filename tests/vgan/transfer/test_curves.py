"""Points of a sweep's figures against hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.transfer.curves import Result, accuracies, gains


def result(init: str, fraction: float, seed: int, right: int, split: int = 1, videos: int = 20) -> Result:
    return Result(init=init, fraction=fraction, seed=seed, split=split, correct=np.arange(videos) < right)


RESULTS = [
    result("random", 1.0, 0, 10), result("random", 1.0, 1, 12),
    result("vgan", 1.0, 1, 18), result("vgan", 1.0, 0, 16),
    result("vgan", 0.5, 0, 8),
]  # fmt: skip


def test_accuracies_are_means_over_seeds_inside_their_intervals() -> None:
    points = {(p.init, p.fraction): p for p in accuracies(RESULTS)}
    assert list(points) == [("vgan", 0.5), ("vgan", 1.0), ("random", 1.0)]  # the baseline last, fractions ascending
    assert points["vgan", 1.0].mean == pytest.approx(0.85)
    assert points["vgan", 1.0].seeds == (0.8, 0.9)  # by seed, not as they came
    for point in points.values():
        assert 0 <= point.low < point.mean < point.high <= 1


def test_accuracies_of_several_splits_are_the_mean_of_splits_whatever_their_sizes() -> None:
    both = [result("vgan", 1.0, 0, 10, split=1, videos=20), result("vgan", 1.0, 0, 90, split=2, videos=100)]
    (point,) = accuracies(both)
    assert point.mean == pytest.approx((0.5 + 0.9) / 2)
    assert point.seeds == pytest.approx((0.7,))


def test_gains_are_over_the_baseline_at_the_same_fraction() -> None:
    (gain,) = gains(RESULTS)  # there is no baseline at one half
    assert (gain.init, gain.fraction) == ("vgan", 1.0)
    assert gain.mean == pytest.approx(0.85 / 0.55)
    assert gain.seeds == pytest.approx((1.6, 1.5))
    assert 1 < gain.low < gain.mean < gain.high


def test_gains_pair_videos_so_that_equal_runs_have_a_gain_of_one_without_doubt() -> None:
    same = [result("random", 1.0, s, 7 + s) for s in range(3)] + [result("twin", 1.0, s, 7 + s) for s in range(3)]
    (gain,) = gains(same)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1, 1, 1))


def test_gains_over_a_baseline_that_was_never_right_are_left_out() -> None:
    assert gains([result("random", 1.0, 0, 0), result("vgan", 1.0, 0, 5)]) == []
