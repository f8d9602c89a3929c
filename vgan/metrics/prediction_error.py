"""Pixel errors of predicted futures, compared with two trivial predictions (paper section 3.4).

A model that beats neither the static prediction (`copy_first_frame`) nor the mean change (`mean_future`) has learned
nothing about the future. Pixel errors favor blur, because a plausible future that did not happen counts as an error:
they are a minimum requirement, not a ranking of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ForecastErrors:
    """Mean squared errors of predicted clips per frame, without the first frame, for pixel values in [0, 1]."""

    by_frame: np.ndarray  # (T - 1,) float64, mean over clips, pixels and channels
    num_clips: int

    @property
    def mean(self) -> float:
        """Mean squared error over all frames except the first, which is the input of the model."""
        return float(self.by_frame.mean())

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio of the mean squared error, decibels; infinite for a perfect prediction."""
        return float("inf") if self.mean == 0 else float(-10 * np.log10(self.mean))


def forecast_errors(truth: np.ndarray, predicted: np.ndarray) -> ForecastErrors:
    """Compute the errors of predicted clips against the true ones, both (N, T, H, W, 3) uint8.

    Raises:
        ValueError: the shapes differ, or there are no clips.
    """
    if truth.shape != predicted.shape or not len(truth):
        shapes = f"{predicted.shape} and {truth.shape}"
        raise ValueError(f"predictions and true clips must have the same shape and N above 0, got {shapes}")
    total = np.zeros(truth.shape[1] - 1)
    for real, prediction in zip(truth, predicted, strict=True):
        difference = (real[1:].astype(np.float32) - prediction[1:]) / 255
        total += np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)
    return ForecastErrors(total / len(truth), len(truth))


def copy_first_frame(truth: np.ndarray) -> np.ndarray:
    """Return the static prediction: the first frame of each clip repeated, (N, T, H, W, 3) uint8."""
    return np.broadcast_to(truth[:, :1], truth.shape)


def mean_change_prediction(clips: Iterable[np.ndarray]) -> np.ndarray:
    """Average the difference of each frame from the first frame over clips.

    Args:
        clips: (T, H, W, 3) uint8 each.

    Returns:
        (T, H, W, 3) float32, -255..255.

    Raises:
        ValueError: there are no clips.
    """
    total, num_clips = np.zeros(()), 0
    for clip in clips:
        total = total + (clip.astype(np.float32) - clip[0])
        num_clips += 1
    if not num_clips:
        raise ValueError("mean_change needs at least one clip, got none")
    return (total / num_clips).astype(np.float32)


def mean_future(truth: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the mean-change prediction (N, T, H, W, 3) uint8: each clip's first frame plus `change` (T, H, W, 3)."""
    return np.stack([np.clip(np.rint(clip[0] + change), 0, 255).astype(np.uint8) for clip in truth])


def error_table(errors: Mapping[str, ForecastErrors]) -> str:
    """Format errors as a text table, one row per prediction: mean squared error x1000, PSNR, errors of some frames."""
    length = len(next(iter(errors.values())).by_frame)
    frames = sorted({min(length, t) for t in (1, 4, 8, 16, length)})
    lines = [f"{'':<14}{'MSE x1000':>10}{'PSNR dB':>9}" + "".join(f"{f'frame {t + 1}':>10}" for t in frames)]
    for name, error in errors.items():
        cells = "".join(f"{1000 * error.by_frame[t - 1]:>10.2f}" for t in frames)
        lines.append(f"{name:<14}{1000 * error.mean:>10.2f}{error.psnr_db:>9.2f}{cells}")
    return "\n".join(lines)
