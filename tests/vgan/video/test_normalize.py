"""Conversion between uint8 frames and float clips is exact."""

from __future__ import annotations

import numpy as np
import torch

from vgan.video.normalize import denormalize_clips, normalize_clips


def every_level() -> torch.Tensor:
    levels = np.random.default_rng(0).permutation(np.tile(np.arange(256, dtype=np.uint8), 18))
    return torch.from_numpy(levels.reshape(2, 4, 12, 16, 3))


def test_to_model_range_puts_channels_first_and_levels_in_one() -> None:
    frames = every_level()
    clips = normalize_clips(frames)
    assert clips.shape == (2, 3, 4, 12, 16)
    assert clips.dtype == torch.float32
    assert (clips.min(), clips.max()) == (-1, 1)
    assert float(clips[1, 2, 1, 5, 7]) == np.float32(int(frames[1, 1, 5, 7, 2]) / 127.5) - np.float32(1)


def test_model_range_round_trip_is_exact() -> None:
    frames = every_level()
    assert torch.equal(denormalize_clips(normalize_clips(frames)), frames)


def test_from_model_range_clamps() -> None:
    clips = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 1, 5)
    assert denormalize_clips(clips).ravel().tolist() == [0, 0, 128, 255, 255]
