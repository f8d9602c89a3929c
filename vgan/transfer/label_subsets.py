"""Nested per-class subsets of a labeled set, for accuracy against the amount of labeled data (paper figure 4b)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # the paper names 1/8 and 1; the intermediate values are our choice


def label_subset(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Select a fraction of every class, rounded to at least one clip per class.

    The indices of a smaller fraction are a subset of those of a larger one. Each class has a separate random stream, so
    adding a class does not change the others. The selection depends on the order of `labels`: keep clips in the order
    of the official lists.

    Args:
        labels: (N,) integer class of every clip.
        fraction: share of each class, above 0 and at most 1.
        seed: seed of the selection.

    Returns:
        Sorted indices (M,) int64.

    Raises:
        ValueError: `fraction` is out of range, or `labels` is not a vector.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    classes = np.asarray(labels)
    if classes.ndim != 1:
        raise ValueError(f"labels must be a vector, got shape {classes.shape}")
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        order = np.random.default_rng([seed, int(label)]).permutation(members)
        chosen.append(order[: max(1, int(fraction * len(members) + 0.5))])
    return np.sort(np.concatenate(chosen))


def held_out_mask(
    labels: Sequence[int] | np.ndarray, groups: Sequence[int] | np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Select clips to hold out from training, by entire groups because the clips of a group are near-duplicates.

    A class with a single group has no group held out; any other class has at least one group held out and one retained.

    Args:
        labels: (N,) integer class of every clip.
        groups: (N,) integer group (source video within its class) of every clip.
        share: share of each class's groups to hold out, above 0 and below 1.
        seed: seed of the selection.

    Returns:
        Mask (N,) bool, true for clips held out.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    classes, sources = np.asarray(labels), np.asarray(groups)
    mask = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        class_groups = np.unique(sources[classes == label])
        order = np.random.default_rng([seed, int(label), 1]).permutation(class_groups)
        chosen = order[: min(max(1, round(share * len(class_groups))), len(class_groups) - 1)]
        mask |= (classes == label) & np.isin(sources, chosen)
    return mask


def ids_digest(clip_ids: Iterable[str]) -> str:
    """Return the first 16 hex digits of SHA-256 over the sorted clip ids; independent of their order."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()[:16]
