"""Seeded selection of reference clips of a dataset, balanced over classes and videos.

Several published distances use the first N clips of a sorted list as reference: the first 2,048 videos of UCF101
contain 16 of the 101 classes. Uniform sampling of windows over-represents long videos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def balanced_order(classes: Sequence[Hashable], sources: Sequence[Hashable], seed: int) -> np.ndarray:
    """Order N clips so that every prefix is balanced over classes, and within each class over videos.

    Classes alternate, and so do the videos of a class; the seed determines the clip of a video. A larger selection
    contains the smaller ones.

    Args:
        classes: class of each clip; all equal (or None) without labels.
        sources: video of each clip.
        seed: seed of the random order.

    Returns:
        Indices of the clips, (N,) int64.

    Raises:
        ValueError: the two sequences differ in length.
    """
    if len(classes) != len(sources):
        raise ValueError(f"classes and sources must have the same length, got {len(classes)} and {len(sources)}")
    order = np.random.default_rng(seed).permutation(len(sources))
    for keys in (sources, classes):  # the last sort has the highest priority
        order = order[np.argsort(_occurrence_indices([keys[i] for i in order]), kind="stable")]
    return order


def _occurrence_indices(keys: Sequence[Hashable]) -> list[int]:
    """Return for each key the number of equal keys before it."""
    counts, indices = Counter[Hashable](), []
    for key in keys:
        indices.append(counts[key])
        counts[key] += 1
    return indices
