"""What moves in clips, how fast, and whether the mask lies there: one value a clip, so that means have intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SURE = 0.1  # distance from 0 or 1 within which a mask has decided


def motion(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring frames of clips (N, T, H, W, 3) uint8: (N,) float64, 0..255."""
    return np.array([np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips])


def flicker(clips: np.ndarray) -> np.ndarray:
    """Flicker of the background of clips (N, T, H, W, 3) uint8: (N,) float64, 0..255.

    Background is the half of a clip's pixels that vary least over time, so that models without a mask can be asked
    too; flicker is the mean of |x[t-1] - 2 x[t] + x[t+1]| / 2 there: what goes up and down again, which a steady drift
    does not. The paper: one stream "generally produces high-frequency temporal flickering in the background" (3.2).
    """
    found = []
    for clip, varies in zip(clips, temporal_deviation(clips), strict=True):
        bend = np.abs(np.diff(clip.astype(np.int16), n=2, axis=0)).mean(axis=(0, 3)) / 2  # (H, W)
        found.append(bend[varies <= np.median(varies)].mean())
    return np.array(found)


def spectrum(clips: np.ndarray) -> np.ndarray:
    """Shares of the temporal power of clips (N, T, H, W, 3) uint8 at 1, 2, ... T // 2 cycles a clip: (N, T // 2).

    Of gray values less their mean over time, under a Hann window (so that a drift does not leak into all), summed over
    pixels. Zeros for a clip in which nothing moves.
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
    """Mean frequency of spectra (N, T // 2) in cycles a frame, 0..0.5: (N,); NaN where nothing moves."""
    cycles = np.arange(1, shares.shape[1] + 1) / num_frames
    return np.where(shares.any(axis=1), (shares * cycles).sum(axis=1), np.nan)


def temporal_deviation(clips: np.ndarray) -> np.ndarray:
    """Where clips (N, T, H, W, 3) uint8 change: standard deviation over time, mean over colours, (N, H, W) float32."""
    return np.stack([clip.astype(np.float32).std(axis=0).mean(axis=-1) for clip in clips])


# ---- masks -------------------------------------------------------------------------------------------------------


def mask_statistics(masks: np.ndarray, clips: np.ndarray) -> dict[str, np.ndarray]:
    """What masks (N, T, H, W) in [0, 1] do, (N,) float64 by name.

    mask-mean; mask-decided: share within 0.1 of 0 or 1; mask-follows: `mask_motion_correlation` with `clips`.
    """
    decided = (masks < SURE) | (masks > 1 - SURE)
    return {
        "mask-mean": masks.mean(axis=(1, 2, 3), dtype=np.float64),
        "mask-decided": decided.mean(axis=(1, 2, 3)),
        "mask-follows": mask_motion_correlation(masks, clips),
    }


def mask_motion_correlation(masks: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Pearson's correlation, over the pixels of a clip, of the mask's mean over time with the temporal deviation.

    Args:
        masks: (N, T, H, W) in [0, 1].
        clips: (N, T, H, W, 3) uint8; drawn ones, or the real ones that were redrawn or predicted.

    Returns:
        (N,) float64; NaN for a clip whose mask or pixels do not vary.
    """
    found = np.full(len(clips), np.nan)
    for row, (mask, moved) in enumerate(zip(masks.mean(axis=1), temporal_deviation(clips), strict=True)):
        if mask.std() > 0 and moved.std() > 0:
            found[row] = np.corrcoef(mask.ravel(), moved.ravel())[0, 1]
    return found


# ---- diversity ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningMoments:
    """Sums over clips and over their squares, exact in float64: parts of a set are measured apart and added."""

    num: int
    values: np.ndarray  # (T, H, W, 3)
    squares: np.ndarray  # (T, H, W, 3)

    @classmethod
    def of(cls, clips: np.ndarray) -> RunningMoments:
        """Of clips (N, T, H, W, 3) uint8."""
        squares = np.zeros(clips.shape[1:])
        for clip in clips:
            squares += clip.astype(np.float64) ** 2
        return cls(len(clips), clips.sum(axis=0, dtype=np.float64), squares)

    def __add__(self, other: RunningMoments) -> RunningMoments:
        return RunningMoments(self.num + other.num, self.values + other.values, self.squares + other.squares)

    def diversity(self) -> float:
        """As `diversity` of all the clips; NaN for one."""
        if self.num < 2:
            return float("nan")
        variance = (self.squares - self.values**2 / self.num) / (self.num - 1)
        return float(np.sqrt(np.maximum(variance, 0)).mean())


def diversity(clips: np.ndarray) -> float:
    """Mean over pixels of the standard deviation over clips (N, T, H, W, 3) uint8, N above 1, 0..255."""
    return RunningMoments.of(clips).diversity()
