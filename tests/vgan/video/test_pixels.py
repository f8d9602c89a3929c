"""The two forms of pixels hold the same picture."""

from __future__ import annotations

import numpy as np
import torch

from vgan.video.pixels import batch_from_model_range, batch_to_model_range, from_model_range, to_model_range


def every_level() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.tile(np.arange(256, dtype=np.uint8), 9)).reshape(4, 12, 16, 3)


def test_to_model_range_puts_channels_first_and_levels_in_one():
    frames = every_level()
    clip = to_model_range(frames)
    assert clip.shape == (3, 4, 12, 16)
    assert clip.dtype == np.float32
    assert (clip.min(), clip.max()) == (-1, 1)
    assert clip[2, 1, 5, 7] == np.float32(frames[1, 5, 7, 2] / 127.5 - 1)


def test_model_range_round_trip_is_exact():
    frames = every_level()
    assert np.array_equal(from_model_range(to_model_range(frames)), frames)


def test_from_model_range_clamps():
    clip = np.array([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32).reshape(1, 1, 1, 5)
    assert from_model_range(clip).ravel().tolist() == [0, 0, 128, 255, 255]


def test_batches_agree_with_single_clips():
    frames = np.stack([every_level(), 255 - every_level()])
    batch = batch_to_model_range(torch.from_numpy(frames))
    assert np.allclose(batch.numpy(), np.stack([to_model_range(each) for each in frames]), atol=1e-7)
    assert np.array_equal(batch_from_model_range(batch).numpy(), frames)
