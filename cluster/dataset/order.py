"""The order of clips in an epoch, and each rank's slice of a batch."""

from __future__ import annotations

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import ROWS_PER_GROUP

WINDOW = 8  # row groups: 512 clips, 200 MB raw


def row_group_index(manifest: Manifest) -> np.ndarray:
    """List the row groups of a dataset: int64 (G, 4) of (shard, group in the shard, first clip, number of clips)."""
    rows, first = [], 0
    for shard, entry in enumerate(manifest.shards):
        for group, start in enumerate(range(0, entry.rows, ROWS_PER_GROUP)):
            count = min(ROWS_PER_GROUP, entry.rows - start)
            rows.append((shard, group, first, count))
            first += count
    return np.array(rows, np.int64)


def epoch_order(groups: np.ndarray, digest: str, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch, each clip once: int64 (clips, 2) of (row group index, row in the group)."""
    rng = np.random.default_rng([int(digest[:15], 16), seed, epoch])
    shuffled = rng.permutation(len(groups))
    windows = []
    for start in range(0, len(shuffled), WINDOW):
        window = np.concatenate(
            [np.stack([np.full(groups[g, 3], g), np.arange(groups[g, 3])], 1) for g in shuffled[start : start + WINDOW]]
        )
        windows.append(rng.permutation(window))
    return np.concatenate(windows)


def rank_slice(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return (start, end) of a rank's share of a global batch; the first ranks take one more if it does not divide.

    Same split as `torch.tensor_split`, which divides the random numbers drawn for the same clips.
    """
    size, more = divmod(batch_size, world_size)
    first = rank * size + min(rank, more)
    return first, first + size + (rank < more)
