"""What moves in clips, and whether the mask lies there."""

from __future__ import annotations

import numpy as np


def motion(clips: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames of clips (N, T, H, W, 3) uint8, 0..255."""
    steps = [np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips]
    return float(np.mean(steps))


def diversity(clips: np.ndarray) -> float:
    """Mean over pixels of the standard deviation over clips (N, T, H, W, 3) uint8, N above 1, 0..255."""
    return float(clips.astype(np.float32).std(axis=0, ddof=1).mean())


def temporal_deviation(clips: np.ndarray) -> np.ndarray:
    """Where clips (N, T, H, W, 3) uint8 change: standard deviation over time, mean over colours, (N, H, W) float32."""
    return np.stack([clip.astype(np.float32).std(axis=0).mean(axis=-1) for clip in clips])


def mask_motion_correlation(masks: np.ndarray, clips: np.ndarray) -> float:
    """Pearson's correlation, over the pixels of a clip, of the mask's mean over time with the temporal deviation.

    Args:
        masks: (N, T, H, W) in [0, 1].
        clips: (N, T, H, W, 3) uint8; drawn ones, or the real ones that were redrawn or predicted.

    Returns:
        Mean over the clips whose mask and pixels both vary; NaN if there is none.
    """
    found = []
    for mask, moved in zip(masks.mean(axis=1), temporal_deviation(clips), strict=True):
        if mask.std() > 0 and moved.std() > 0:
            found.append(np.corrcoef(mask.ravel(), moved.ravel())[0, 1])
    return float(np.mean(found)) if found else float("nan")
