"""Are drawn clips copies of training clips? A distance rewards whoever recalls what it is measured against.

In the spirit of https://arxiv.org/abs/2102.08921: how near real clips that were not trained on come to the training
clips says what is near for a drawn one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

GRID = 8  # blocks along every side of a clip
NEAR = 0.05  # share of unseen clips that come as near by chance


@dataclass(frozen=True)
class NearestNeighbors:
    """The nearest known clip of each of Q clips. Parts of the known ones are searched apart and joined with `min`.

    Distances are float32, root mean squares over blocks; infinite where no clip may count.
    """

    distance: np.ndarray  # (Q,)
    row: np.ndarray  # (Q,) int64, of all known clips
    source: np.ndarray  # (Q,) str, the nearest clip's video
    second: np.ndarray  # (Q,) distance of the nearest clip of any other video

    @classmethod
    def none(cls, num: int) -> NearestNeighbors:
        """Before any known clip was seen."""
        far = np.full(num, np.inf, np.float32)
        return cls(far, np.zeros(num, np.int64), np.full(num, ""), far)

    @property
    def ratio(self) -> np.ndarray:
        """(Q,): distance over second, 0 for a copy and near 1 for what is no nearer to one video than to the next. NaN
        without a second video.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isfinite(self.second), self.distance / self.second, np.nan)

    def min(self, other: NearestNeighbors) -> NearestNeighbors:
        """The nearer one of each; of equals the first of all."""
        ahead = (other.distance < self.distance) | ((other.distance == self.distance) & (other.row < self.row))
        behind = np.where(ahead, self.distance, other.distance)  # of the part that loses
        seconds = np.minimum(self.second, other.second)
        own = np.where(ahead, other.second, self.second)
        return NearestNeighbors(
            np.where(ahead, other.distance, self.distance),
            np.where(ahead, other.row, self.row),
            np.where(ahead, other.source, self.source),
            np.where(self.source == other.source, seconds, np.minimum(own, behind)),
        )


def block_means(clips: np.ndarray) -> np.ndarray:
    """Means of blocks an eighth of a clip along every side, (N, 1536) float32, of clips (N, T, H, W, 3) uint8."""
    num, time, height, width, _ = clips.shape
    if time % GRID or height % GRID or width % GRID:
        raise ValueError(f"clips must have sides that {GRID} divides, got {clips.shape}")
    blocks = clips.reshape(num, GRID, time // GRID, GRID, height // GRID, GRID, width // GRID, 3)
    if not num:
        return np.empty((0, GRID**3 * 3), np.float32)
    return np.stack([clip.mean(axis=(1, 3, 5), dtype=np.float32).ravel() for clip in blocks])


def normalize_blocks(blocks: np.ndarray) -> np.ndarray:
    """What `coarse` gives (N, D), without its brightness and contrast: mean 0 and standard deviation 1 at most.

    Flat gray clips are near to any dim clip; their patterns are near to none.
    """
    centred = blocks - blocks.mean(axis=1, keepdims=True)
    return centred / np.maximum(centred.std(axis=1, keepdims=True), 1.0)  # below one level it is noise


def nearest_neighbors(
    asked: np.ndarray,
    known: np.ndarray,
    *,
    sources: np.ndarray | None = None,
    own: np.ndarray | None = None,
    first: int = 0,
) -> NearestNeighbors:
    """The nearest of the known clips for each asked one, both as `coarse` or `pattern` gives them, (Q, D), (K, D).

    Args:
        sources: (K,) str, videos of the known clips; None: each is of its own.
        own: (Q,) str, of the asked ones: clips of the same video do not count.
        first: number of the first known clip among all.
    """
    sources = np.arange(first, first + len(known)).astype(str) if sources is None else sources
    # cdist's shortcut through a matrix product would blur the distances of copies. Arrays out of Ray are read-only:
    # they are copied.
    found = torch.cdist(
        torch.tensor(asked), torch.tensor(known), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy() / np.sqrt(asked.shape[1], dtype=np.float32)
    if own is not None:
        found[own[:, None] == sources[None, :]] = np.inf
    best = found.argmin(axis=1)
    others = np.where(sources[best][:, None] == sources[None, :], np.inf, found).astype(np.float32)
    return NearestNeighbors(
        found[np.arange(len(found)), best], best.astype(np.int64) + first, sources[best], others.min(axis=1)
    )


def is_memorized(drawn: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Whether each drawn clip is nearer to a training clip than 19 in 20 unseen real ones are: (Q,) float64, 0 or 1.

    Args:
        drawn: of drawn clips, `Nearest.ratio` (or `distance`, which takes flat clips for copies).
        unseen: the same of real clips whose videos were not trained on, or are not searched for them.
    """
    return (drawn < np.quantile(unseen, NEAR)).astype(np.float64)
