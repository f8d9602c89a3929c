"""Windows that are blank, static or have many repeated frames are rejected; others are not."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.errors import VideoError
from vgan.video.config import DecodeConfig, PrescreenConfig
from vgan.video.decoding.decode import frames
from vgan.video.prescreen import WindowStatistics, measure_window, reject_window

OFF = PrescreenConfig(min_contrast=0, min_activity=0, max_frozen_fraction=0)


def pan(num_frames: int = 32) -> np.ndarray:
    return film([make_texture(0)] * num_frames, [camera((t, 0)) for t in range(num_frames)])


def refusal(clip: np.ndarray) -> str:
    with pytest.raises(VideoError) as caught:
        reject_window(measure_window(clip), PrescreenConfig())
    assert caught.value.stage == "screen"
    reject_window(measure_window(clip), OFF)  # each test can be disabled
    return caught.value.reason


def with_sensor_noise(clip: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 3, clip.shape)
    return (clip + noise).clip(0, 255).astype(np.uint8)


def test_check_moving_picture_is_accepted():
    reject_window(measure_window(pan()), PrescreenConfig())


@pytest.mark.parametrize("level", [0, 16, 255])
def test_check_one_color_with_noise_is_black(level):
    assert refusal(with_sensor_noise(np.full((32, 96, 128, 3), level))) == "black"


def test_check_one_repeated_picture_is_static():
    assert refusal(np.repeat(pan(1), 32, axis=0)) == "static"


def test_check_most_frames_repeated_is_frozen():
    moving = pan()
    assert refusal(np.concatenate([moving[:14], np.repeat(moving[14:15], 18, axis=0)])) == "frozen"


def test_check_every_frame_twice_with_coding_noise_is_frozen():
    doubled = np.repeat(pan(16), 2, axis=0)
    noise = np.random.default_rng(0).integers(-2, 3, doubled.shape)
    assert refusal((doubled + noise).clip(0, 255).astype(np.uint8)) == "frozen"


def test_look_still_camera_with_noise_has_no_frozen_frame():
    assert measure_window(with_sensor_noise(np.repeat(pan(1), 32, axis=0))).frozen_fraction == 0


def test_look_counts_repeated_frames():
    clip = pan()
    clip[10:14] = clip[9]
    assert measure_window(clip).frozen_fraction == 4 / 31


def test_look_single_frame_has_no_change():
    assert measure_window(pan(1)) == WindowStatistics(
        contrast=measure_window(pan(1)).contrast, frozen_fraction=0.0, activity=0.0
    )


@pytest.mark.parametrize("bounds", [{"min_contrast": -1.0}, {"max_frozen_fraction": 1.5}])
def test_screen_config_impossible_bound_is_refused(bounds):
    with pytest.raises(ValueError, match="screen"):
        replace(PrescreenConfig(), **bounds)


@pytest.mark.parametrize(("name", "reason"), [("mp4parse/white.mp4", "black"), ("torchcodec/nasa_13013.mp4", "static")])
def test_check_real_video_without_picture_or_movement_is_refused(shared, name, reason):
    images = [frame.image for frame in islice(frames(shared / "data/odd" / name, DecodeConfig()), 32)]
    assert refusal(np.stack(images)) == reason
