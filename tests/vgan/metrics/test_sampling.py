"""Balance of reference sets over classes and videos, at every size."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vgan.metrics.sampling import balanced_order

# Sorted as a dataset's names are: 40 clips of one long video, 8 of four short ones, and a class of three clips.
CLASSES = ["a"] * 48 + ["b"] * 3
SOURCES = ["a0"] * 40 + ["a1", "a1", "a2", "a2", "a3", "a3", "a4", "a4"] + ["b0", "b1", "b1"]


def test_balanced_order_holds_every_clip_once_and_repeats_with_its_seed() -> None:
    order = balanced_order(CLASSES, SOURCES, seed=1)
    assert sorted(order.tolist()) == list(range(51))
    assert (order == balanced_order(CLASSES, SOURCES, seed=1)).all()
    assert (order != balanced_order(CLASSES, SOURCES, seed=2)).any()


def test_balanced_order_begins_evenly_over_classes_then_over_videos() -> None:
    for seed in range(5):
        order = balanced_order(CLASSES, SOURCES, seed)
        for size in (2, 4, 6):
            assert max(Counter(CLASSES[i] for i in order[:size]).values()) == size // 2
        of_a = [SOURCES[i] for i in order if CLASSES[i] == "a"]
        assert set(of_a[:5]) == {"a0", "a1", "a2", "a3", "a4"}
        assert Counter(of_a[:10]) == dict.fromkeys(("a0", "a1", "a2", "a3", "a4"), 2)


def test_balanced_order_without_labels_is_even_over_videos_and_draws_any_clip_of_one() -> None:
    firsts = set()
    for seed in range(30):
        order = balanced_order([None] * 51, SOURCES, seed)
        assert len({SOURCES[i] for i in order[:7]}) == 7
        firsts |= {int(i) for i in order[:7] if SOURCES[i] == "a0"}
    assert len(firsts) > 10  # of the forty clips of a0


def test_the_first_of_a_sorted_list_would_have_been_one_class() -> None:
    order = balanced_order(CLASSES, SOURCES, seed=0)
    assert {CLASSES[i] for i in order[:6]} == {"a", "b"}
    assert {CLASSES[i] for i in np.arange(6)} == {"a"}
