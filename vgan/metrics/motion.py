"""Statistics of motion and masks, one value per clip, from which means and their intervals are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SURE = 0.1  # distance from 0 or 1 within which a mask value counts as decided


def motion(clips: np.ndarray) -> np.ndarray:
    """Compute the mean absolute difference of adjacent frames of clips (N, T, H, W, 3) uint8: (N,) float64, 0..255."""
    return np.array([np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips])


def flicker(clips: np.ndarray) -> np.ndarray:
    """Compute the flicker of the background of clips (N, T, H, W, 3) uint8: (N,) float64, 0..255.

    The background is the half of a clip's pixels that vary least over time, so that models without a mask can be
    measured too. Flicker is the mean of |x[t-1] - 2 x[t] + x[t+1]| / 2 over those pixels, which is 0 for a steady
    drift. Paper section 3.2: "The one-stream architecture generally produces high-frequency temporal flickering in the
    background".
    """
    values = []
    for clip, deviation in zip(clips, temporal_deviation(clips), strict=True):
        curvature = np.abs(np.diff(clip.astype(np.int16), n=2, axis=0)).mean(axis=(0, 3)) / 2  # (H, W)
        values.append(curvature[deviation <= np.median(deviation)].mean())
    return np.array(values)


def spectrum(clips: np.ndarray) -> np.ndarray:
    """Compute shares of the temporal power of clips (N, T, H, W, 3) uint8 at 1 to T // 2 cycles per clip: (N, T // 2).

    The power is that of gray values minus their mean over time, with a Hann window (which prevents leakage of a drift
    into all frequencies), summed over pixels. The shares of a clip without motion are 0.
    """
    length = clips.shape[1]
    window = np.hanning(length + 1)[:length, None, None]
    shares = np.zeros((len(clips), length // 2))
    for row, clip in enumerate(clips):
        gray = clip.mean(axis=-1)
        power = (np.abs(np.fft.rfft((gray - gray.mean(axis=0)) * window, axis=0)) ** 2).sum(axis=(1, 2))[1:]
        if power.sum() > 0:
            shares[row] = power / power.sum()
    return shares


def spectral_centroid(shares: np.ndarray, num_frames: int) -> np.ndarray:
    """Compute the mean frequency of spectra (N, T // 2), cycles per frame, 0..0.5: (N,); NaN without motion."""
    cycles = np.arange(1, shares.shape[1] + 1) / num_frames
    return np.where(shares.any(axis=1), (shares * cycles).sum(axis=1), np.nan)


def temporal_deviation(clips: np.ndarray) -> np.ndarray:
    """Compute the standard deviation over time, averaged over channels, of (N, T, H, W, 3) uint8: (N, H, W) float32."""
    return np.stack([clip.astype(np.float32).std(axis=0).mean(axis=-1) for clip in clips])


# ---- masks -------------------------------------------------------------------------------------------------------


def mask_statistics(masks: np.ndarray, clips: np.ndarray) -> dict[str, np.ndarray]:
    """Compute statistics of masks, (N,) float64 by name.

    mask-mean: mean of the mask; mask-decided: share of values within 0.1 of 0 or 1; mask-follows:
    `mask_motion_correlation` with `clips`.

    Args:
        masks: (N, T, H, W) in [0, 1].
        clips: (N, T, H, W, 3) uint8.
    """
    decided = (masks < SURE) | (masks > 1 - SURE)
    return {
        "mask-mean": masks.mean(axis=(1, 2, 3), dtype=np.float64),
        "mask-decided": decided.mean(axis=(1, 2, 3)),
        "mask-follows": mask_motion_correlation(masks, clips),
    }


def mask_motion_correlation(masks: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation over pixels of the mask's mean over time with the temporal deviation of a clip.

    Args:
        masks: (N, T, H, W) in [0, 1].
        clips: (N, T, H, W, 3) uint8; generated clips, or the real clips that a model reconstructed or predicted.

    Returns:
        (N,) float64; NaN for a clip whose mask or pixels do not vary.
    """
    correlations = np.full(len(clips), np.nan)
    for row, (mask, deviation) in enumerate(zip(masks.mean(axis=1), temporal_deviation(clips), strict=True)):
        if mask.std() > 0 and deviation.std() > 0:
            correlations[row] = np.corrcoef(mask.ravel(), deviation.ravel())[0, 1]
    return correlations


# ---- diversity ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningMoments:
    """Sums of clips and of their squares, exact in float64, so that sums of parts of a set can be added."""

    num: int
    values: np.ndarray  # (T, H, W, 3)
    squares: np.ndarray  # (T, H, W, 3)

    @classmethod
    def of(cls, clips: np.ndarray) -> RunningMoments:
        """Compute the sums of clips (N, T, H, W, 3) uint8."""
        squares = np.zeros(clips.shape[1:])
        for clip in clips:
            squares += clip.astype(np.float64) ** 2
        return cls(len(clips), clips.sum(axis=0, dtype=np.float64), squares)

    def __add__(self, other: RunningMoments) -> RunningMoments:
        return RunningMoments(self.num + other.num, self.values + other.values, self.squares + other.squares)

    def diversity(self) -> float:
        """Compute `diversity` of all clips; NaN for one clip."""
        if self.num < 2:
            return float("nan")
        variance = (self.squares - self.values**2 / self.num) / (self.num - 1)
        return float(np.sqrt(np.maximum(variance, 0)).mean())


def diversity(clips: np.ndarray) -> float:
    """Compute the mean over pixels of the standard deviation over clips (N, T, H, W, 3) uint8, N above 1, 0..255."""
    return RunningMoments.of(clips).diversity()
