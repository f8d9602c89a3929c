"""Black bars are detected to the pixel; dark pictures are not cropped."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import frames
from vgan.video.letterbox import crop, detect_bars


def pan(num_frames: int = 8) -> np.ndarray:
    return film([make_texture(0)] * num_frames, [camera((2 * t, 0)) for t in range(num_frames)])


def boxed(top: int, bottom: int, left: int, right: int, noise: float = 0.0) -> np.ndarray:
    """Create a pan (8, 128, 170, 3) uint8 with black bars that contain coding noise."""
    clip = pan()
    inside = np.zeros(clip.shape[1:3], bool)
    inside[top : clip.shape[1] - bottom, left : clip.shape[2] - right] = True
    coding_noise = np.random.default_rng(0).normal(8, noise, clip.shape).clip(0, 255).astype(np.uint8)
    return np.where(inside[None, :, :, None], clip, coding_noise)


@pytest.mark.parametrize("depths", [(0, 0, 0, 0), (16, 16, 0, 0), (16, 17, 0, 0), (0, 0, 28, 28), (22, 21, 7, 7)])
def test_bars_of_known_depth_are_detected_exactly(depths):
    clip = boxed(*depths, noise=3.0)
    assert detect_bars(clip) == depths
    assert crop(clip, depths).shape == (8, 128 - depths[0] - depths[1], 170 - depths[2] - depths[3], 3)


@pytest.mark.parametrize("color", [(255, 255, 255), (30, 60, 190), (128, 128, 128)])
@pytest.mark.parametrize("depths", [(16, 17, 0, 0), (0, 0, 28, 28), (22, 21, 7, 7)])
def test_bars_of_another_color_are_detected_exactly(color, depths):
    black = boxed(*depths)
    noise = np.random.default_rng(0).normal(0, 3, black.shape)
    bars = (black == 8).all((0, 3))
    clip = np.where(bars[None, :, :, None], np.array(color) + noise, black).clip(0, 255).astype(np.uint8)
    assert detect_bars(clip) == depths


def test_bars_of_another_color_on_one_side_are_picture():
    clip = pan()
    clip[:, :20] = 230  # a white sky
    assert detect_bars(clip) == (0, 0, 0, 0)


def test_bars_thin_line_on_one_side_is_detected():
    assert detect_bars(boxed(0, 0, 3, 0)) == (0, 0, 3, 0)


def test_bars_deep_dark_band_on_one_side_is_picture():
    assert detect_bars(boxed(20, 0, 0, 0)) == (0, 0, 0, 0)


def test_bars_mixed_row_of_the_scaler_counts_as_bar():
    clip = boxed(16, 16, 0, 0)
    clip[:, 16] //= 2
    assert detect_bars(clip) == (17, 16, 0, 0)


def test_bars_with_half_of_one_edge_dark_are_detected():
    clip = boxed(16, 16, 0, 0)
    clip[:, 80:, 60:] = 5
    assert detect_bars(clip) == (16, 16, 0, 0)


def test_bars_night_sky_above_a_skyline_is_picture():
    clip = pan()
    skyline = 30 + (20 * np.sin(np.arange(170) / 9)).astype(int)
    clip[:, np.arange(128)[:, None] < skyline] = 6
    assert detect_bars(clip) == (0, 0, 0, 0)


def test_bars_black_frames_are_not_cropped():
    assert detect_bars(np.zeros((4, 64, 80, 3), np.uint8)) == (0, 0, 0, 0)


def test_bars_that_are_bright_in_one_frame_are_picture():
    clip = boxed(16, 16, 0, 0)
    clip[5] = pan()[5]
    assert detect_bars(clip) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("Archery/v_Archery_g07_c01", (16, 16, 0, 0)),
        ("BasketballDunk/v_BasketballDunk_g23_c01", (22, 22, 8, 8)),  # bars on all sides
        ("PlayingPiano/v_PlayingPiano_g03_c01", (0, 0, 0, 0)),  # a dark stage
    ],
)
def test_bars_real_video(shared, name, depths):
    path = shared / "data/ucf101/UCF-101" / f"{name}.avi"
    detected = detect_bars(np.stack([frame.image for frame in islice(frames(path, DecodeConfig()), 32)]))
    assert np.abs(np.subtract(detected, depths)).max() <= 1
