"""Detection of generated clips that are copies of training clips, by nearest neighbors.

Distances between distributions do not penalize memorization. As in https://arxiv.org/abs/2102.08921, the distances of
real clips that were not used for training to the training clips determine the threshold for generated clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

GRID = 8  # blocks along every side of a clip
NEAR = 0.05  # quantile of the unseen real clips that is the threshold of a copy


@dataclass(frozen=True)
class NearestNeighbors:
    """Nearest known clip of each of Q queries; results for parts of the known clips are merged with `min`.

    Distances are float32, root mean squares over blocks; infinite if there is no admissible clip.
    """

    distance: np.ndarray  # (Q,)
    row: np.ndarray  # (Q,) int64, index among all known clips
    source: np.ndarray  # (Q,) str, video of the nearest clip
    second: np.ndarray  # (Q,) distance to the nearest clip of any other video

    @classmethod
    def none(cls, num: int) -> NearestNeighbors:
        """Return the result for `num` queries before any known clip is searched."""
        far = np.full(num, np.inf, np.float32)
        return cls(far, np.zeros(num, np.int64), np.full(num, ""), far)

    @property
    def ratio(self) -> np.ndarray:
        """Ratio of distance to second, (Q,): 0 for a copy, near 1 if two videos are equally near.

        NaN if there is no second video.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isfinite(self.second), self.distance / self.second, np.nan)

    def min(self, other: NearestNeighbors) -> NearestNeighbors:
        """Merge with the result for other known clips; ties go to the lower index."""
        ahead = (other.distance < self.distance) | ((other.distance == self.distance) & (other.row < self.row))
        behind = np.where(ahead, self.distance, other.distance)  # distance of the part that is farther
        seconds = np.minimum(self.second, other.second)
        winner_second = np.where(ahead, other.second, self.second)
        return NearestNeighbors(
            np.where(ahead, other.distance, self.distance),
            np.where(ahead, other.row, self.row),
            np.where(ahead, other.source, self.source),
            np.where(self.source == other.source, seconds, np.minimum(winner_second, behind)),
        )


def block_means(clips: np.ndarray) -> np.ndarray:
    """Compute the means of a grid of 8 x 8 x 8 blocks of clips (N, T, H, W, 3) uint8: (N, 1536) float32, 0..255.

    Raises:
        ValueError: a side is not a multiple of 8.
    """
    num, time, height, width, _ = clips.shape
    if time % GRID or height % GRID or width % GRID:
        raise ValueError(f"T, H and W of clips must be multiples of {GRID}, got shape {clips.shape}")
    blocks = clips.reshape(num, GRID, time // GRID, GRID, height // GRID, GRID, width // GRID, 3)
    if not num:
        return np.empty((0, GRID**3 * 3), np.float32)
    return np.stack([clip.mean(axis=(1, 3, 5), dtype=np.float32).ravel() for clip in blocks])


def normalize_blocks(blocks: np.ndarray) -> np.ndarray:
    """Normalize block means (N, D) by brightness and contrast, to mean 0 and standard deviation at most 1.

    Uniform gray clips are near to any dim clip; their patterns are near to none.
    """
    centered = blocks - blocks.mean(axis=1, keepdims=True)
    return centered / np.maximum(centered.std(axis=1, keepdims=True), 1.0)  # below 1 gray level it is noise


def nearest_neighbors(
    asked: np.ndarray,
    known: np.ndarray,
    *,
    sources: np.ndarray | None = None,
    own: np.ndarray | None = None,
    first: int = 0,
) -> NearestNeighbors:
    """Find the nearest known clip of each query.

    Args:
        asked: queries (Q, D) float32, results of `block_means` or `normalize_blocks`.
        known: known clips (K, D) float32, results of the same function.
        sources: video of each known clip, (K,) str; None: every clip is a video of its own.
        own: video of each query, (Q,) str, whose clips are excluded from its search; None: no exclusion.
        first: index of the first known clip among all known clips.
    """
    sources = np.arange(first, first + len(known)).astype(str) if sources is None else sources
    # The matrix-product mode of cdist is inaccurate for the small distances of copies. torch.tensor copies the arrays,
    # because arrays from Ray are read-only.
    distances = torch.cdist(
        torch.tensor(asked), torch.tensor(known), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy() / np.sqrt(asked.shape[1], dtype=np.float32)
    if own is not None:
        distances[own[:, None] == sources[None, :]] = np.inf
    best = distances.argmin(axis=1)
    others = np.where(sources[best][:, None] == sources[None, :], np.inf, distances).astype(np.float32)
    nearest_distances = distances[np.arange(len(distances)), best]
    return NearestNeighbors(nearest_distances, best.astype(np.int64) + first, sources[best], others.min(axis=1))


def is_memorized(drawn: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Classify generated clips as copies, 1.0, or not, 0.0: (Q,) float64.

    A clip is a copy if it is nearer to a training clip than 95 % of the unseen real clips are.

    Args:
        drawn: `Nearest.ratio` of generated clips (or `distance`, which classifies uniform clips as copies).
        unseen: the same for real clips whose videos were not used for training, or are excluded from their search.
    """
    return (drawn < np.quantile(unseen, NEAR)).astype(np.float64)
