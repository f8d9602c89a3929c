"""Which real clips stand for a dataset: drawn evenly over classes and videos, by a seed.

The first N of a sorted list are what several published distances were measured against: of UCF101's names the first
2,048 show 16 of the 101 classes. Drawing windows evenly gives long videos more than their share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def balanced_order(classes: Sequence[Hashable], sources: Sequence[Hashable], seed: int) -> np.ndarray:
    """An order (N,) int64 of N clips of which every beginning is spread evenly over classes, and in each over videos.

    Classes take turns, and so do the videos of a class; which clip of a video is drawn by the seed. Larger sets hold
    the smaller ones.

    Args:
        classes: of each clip; all the same (or None) where there are no labels.
        sources: the video of each clip.
    """
    if len(classes) != len(sources):
        raise ValueError(f"classes and sources must be of the same clips, got {len(classes)} and {len(sources)}")
    order = np.random.default_rng(seed).permutation(len(sources))
    for keys in (sources, classes):  # the last sort weighs most
        order = order[np.argsort(_turns([keys[i] for i in order]), kind="stable")]
    return order


def _turns(keys: Sequence[Hashable]) -> list[int]:
    """How many equal keys came before each."""
    seen, turns = Counter[Hashable](), []
    for key in keys:
        turns.append(seen[key])
        seen[key] += 1
    return turns
