"""How far predicted futures are from what happened, beside two guesses that know nothing (paper section 3.4).

A model that must beat neither "nothing moves" nor "what moves on average moves" has learned nothing of the future.
Errors over pixels favour blur: a plausible future that did not happen is punished, so they are a floor, not a ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ForecastErrors:
    """Mean squared error over pixels and colours, of values in [0, 1], by frame after the first: (T - 1,) float64."""

    by_frame: np.ndarray
    num_clips: int

    @property
    def mean(self) -> float:
        """Over all frames but the first, which was given."""
        return float(self.by_frame.mean())

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio of the mean error, decibels; infinite for a perfect prediction."""
        return float("inf") if self.mean == 0 else float(-10 * np.log10(self.mean))


def forecast_errors(truth: np.ndarray, predicted: np.ndarray) -> ForecastErrors:
    """Errors of predicted clips against true ones, (N, T, H, W, 3) uint8 each.

    Raises:
        ValueError: their shapes differ, or there is no clip.
    """
    if truth.shape != predicted.shape or not len(truth):
        raise ValueError(f"predictions must have the shape of the truth, got {predicted.shape} and {truth.shape}")
    total = np.zeros(truth.shape[1] - 1)
    for real, drawn in zip(truth, predicted, strict=True):
        difference = (real[1:].astype(np.float32) - drawn[1:]) / 255
        total += np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)
    return ForecastErrors(total / len(truth), len(truth))


def copy_first_frame(truth: np.ndarray) -> np.ndarray:
    """The guess that nothing moves: every clip's first frame throughout, (N, T, H, W, 3) uint8."""
    return np.broadcast_to(truth[:, :1], truth.shape)


def mean_change_prediction(clips: Iterable[np.ndarray]) -> np.ndarray:
    """What clips (T, H, W, 3) uint8 have changed since their first frame, on average: (T, H, W, 3) float32, 0..255."""
    total, num_clips = np.zeros(()), 0
    for clip in clips:
        total = total + (clip.astype(np.float32) - clip[0])
        num_clips += 1
    if not num_clips:
        raise ValueError("a mean change needs at least one clip")
    return (total / num_clips).astype(np.float32)


def mean_future(truth: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The guess that the mean change happens: first frames plus `change` (T, H, W, 3), as (N, T, H, W, 3) uint8."""
    return np.stack([np.clip(np.rint(clip[0] + change), 0, 255).astype(np.uint8) for clip in truth])


def error_table(errors: Mapping[str, ForecastErrors]) -> str:
    """A line a guess: mean squared error times 1000 over all frames and at some, and decibels."""
    length = len(next(iter(errors.values())).by_frame)
    shown = sorted({min(length, t) for t in (1, 4, 8, 16, length)})
    lines = [f"{'':<14}{'MSE x1000':>10}{'PSNR dB':>9}" + "".join(f"{f'frame {t + 1}':>10}" for t in shown)]
    for name, found in errors.items():
        cells = "".join(f"{1000 * found.by_frame[t - 1]:>10.2f}" for t in shown)
        lines.append(f"{name:<14}{1000 * found.mean:>10.2f}{found.psnr_db:>9.2f}{cells}")
    return "\n".join(lines)
