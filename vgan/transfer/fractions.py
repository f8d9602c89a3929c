"""Nested, per-class subsets of a labelled set, for accuracy against the amount of labelled data (paper figure 4b)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # the paper names one eighth and all; the values between are ours


def subset(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices (M,) int64 of the share `fraction` of every class, rounded, at least one clip a class.

    A smaller fraction's indices are always among a larger one's, and each class draws from its own stream, so adding a
    class changes no other. The choice depends on the order within `labels`: keep clips in the official lists' order.

    Args:
        labels: (N,) class of every clip.
        fraction: share of each class, above 0 and at most 1.

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


def held_out(
    labels: Sequence[int] | np.ndarray, groups: Sequence[int] | np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Which clips (N,) bool to hold out from training: whole groups of every class, whose clips are near-copies.

    Of a class with one group none is held out; of any other at least one group, and never all.

    Args:
        labels: (N,) class of every clip.
        groups: (N,) which source video of its class each clip was cut from.
        share: of each class's groups, above 0 and below 1.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    classes, sources = np.asarray(labels), np.asarray(groups)
    out = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        own = np.unique(sources[classes == label])
        order = np.random.default_rng([seed, int(label), 1]).permutation(own)
        chosen = order[: min(max(1, round(share * len(own))), len(own) - 1)]
        out |= (classes == label) & np.isin(sources, chosen)
    return out


def ids_digest(clip_ids: Iterable[str]) -> str:
    """16 hex digits of SHA-256 over the sorted ids: the same clips give the same digest in any order."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()[:16]
