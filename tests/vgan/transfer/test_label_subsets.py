"""Label fractions are nested, stratified and reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.transfer.label_subsets import FRACTIONS, held_out_mask, ids_digest, label_subset


def random_labels(seed: int) -> np.ndarray:
    """Draw shuffled labels (N,) of 2 to 12 classes with 1 to 130 clips each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 131, size=rng.integers(2, 13))
    return rng.permutation(np.repeat(rng.permutation(101)[: len(sizes)], sizes))


@pytest.mark.parametrize("seed", range(8))
def test_subset_smaller_fraction_is_inside_larger(seed: int) -> None:
    labels = random_labels(seed)
    nested = [set(label_subset(labels, fraction, seed)) for fraction in FRACTIONS]
    assert nested[0] <= nested[1] <= nested[2] <= nested[3]
    assert nested[3] == set(range(len(labels)))


@pytest.mark.parametrize("fraction", [0.01, 0.125, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_subset_takes_the_share_of_every_class_and_at_least_one(fraction: float, seed: int) -> None:
    labels = random_labels(seed)
    indices = label_subset(labels, fraction, seed)
    assert np.all(np.diff(indices) > 0)
    for label in np.unique(labels):
        taken, total = np.sum(labels[indices] == label), np.sum(labels == label)
        assert taken >= 1
        assert taken == 1 or abs(taken - fraction * total) <= 0.5


def test_subset_depends_on_the_seed_only() -> None:
    labels = random_labels(3)
    np.testing.assert_array_equal(label_subset(labels, 0.25, 7), label_subset(list(labels), 0.25, 7))
    assert set(label_subset(labels, 0.25, 7)) != set(label_subset(labels, 0.25, 8))


def test_subset_does_not_change_when_a_class_is_added() -> None:
    labels = np.repeat([4, 9], 40)
    extended = np.concatenate([labels, np.full(25, 6)])
    both = label_subset(extended, 0.25, 1)
    np.testing.assert_array_equal(both[both < 80], label_subset(labels, 0.25, 1))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01])
def test_subset_fraction_out_of_range_is_rejected(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        label_subset([0, 1], fraction, 0)


def test_ids_digest_depends_on_the_clips_and_not_on_their_order() -> None:
    assert ids_digest(["b", "a", "c"]) == ids_digest(iter(["a", "b", "c"]))
    assert ids_digest(["a", "b"]) != ids_digest(["a", "c"])
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])


@pytest.mark.parametrize("seed", range(4))
def test_held_out_takes_whole_groups_of_every_class_and_never_all(seed: int) -> None:
    labels = random_labels(seed)
    groups = np.random.default_rng(seed).integers(1, 26, len(labels))
    mask = held_out_mask(labels, groups, 0.2, seed)
    for label in np.unique(labels):
        of_class = labels == label
        class_groups, taken = set(groups[of_class]), set(groups[of_class & mask])
        assert not taken & set(groups[of_class & ~mask])
        expected = 0 if len(class_groups) == 1 else min(max(1, round(0.2 * len(class_groups))), len(class_groups) - 1)
        assert len(taken) == expected
    np.testing.assert_array_equal(mask, held_out_mask(labels, groups, 0.2, seed))


def test_held_out_share_out_of_range_is_rejected() -> None:
    with pytest.raises(ValueError, match="share"):
        held_out_mask([0, 1], [1, 1], 1.0, 0)
