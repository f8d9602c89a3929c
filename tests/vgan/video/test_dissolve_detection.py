"""A clip with a dissolve scores above 1; a clip of one scene, with or without motion, does not."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import frames
from vgan.video.dissolve_detection import dissolve_score


def scene(seed: int, speed_px: float = 0.3) -> np.ndarray:
    """Create a clip (32, 64, 64, 3) uint8 with the small motion that remains after stabilization."""
    clip = film([make_texture(seed)] * 32, [camera((speed_px * t, 0)) for t in range(32)])
    return np.stack([cv2.resize(frame[:, 21:149], (64, 64), interpolation=cv2.INTER_AREA) for frame in clip])


def blend(first: np.ndarray, last: np.ndarray, start: int, length: int) -> np.ndarray:
    """Cross-fade from clip `first` to clip `last` over `length` frames from frame `start`."""
    share = np.clip((np.arange(len(first)) - start + 1) / (length + 1), 0, 1)[:, None, None, None]
    return ((1 - share) * first + share * last).round().astype(np.uint8)


@pytest.mark.parametrize(("start", "length"), [(14, 5), (2, 10), (10, 15), (3, 25)])
def test_dissolve_score_cross_fade_of_two_scenes_is_above_one(start, length):
    assert dissolve_score(blend(scene(0), scene(1), start, length)) > 1


@pytest.mark.parametrize("length", [5, 25])
def test_dissolve_score_fade_to_black_and_from_black_is_above_one(length):
    black = np.full_like(scene(0), 4)
    assert dissolve_score(blend(scene(0), black, 3, length)) > 1
    assert dissolve_score(blend(black, scene(0), 3, length)) > 1


def test_dissolve_score_hard_cut_is_above_one():
    assert dissolve_score(np.concatenate([scene(0)[:16], scene(1)[:16]])) > 1


@pytest.mark.parametrize("speed_px", [0, 0.3, 1.0])
def test_dissolve_score_one_scene_is_low(speed_px):
    assert dissolve_score(scene(0, speed_px)) < 0.5


def test_dissolve_score_change_of_exposure_is_low():
    assert dissolve_score(blend(scene(0), (scene(0) * 0.5 + 100).astype(np.uint8), 5, 20)) < 1


def test_dissolve_score_flat_clip_is_finite():
    assert np.isfinite(dissolve_score(np.zeros((32, 64, 64, 3), np.uint8)))


def test_dissolve_score_real_videos_unblended_are_low_and_blended_high(shared):
    folder = shared / "data/ucf101/UCF-101"
    names = ("Archery/v_Archery_g01_c01", "PlayingPiano/v_PlayingPiano_g01_c01", "HorseRace/v_HorseRace_g02_c01")
    clips = [
        np.stack([cv2.resize(f.image, (64, 64)) for f in islice(frames(folder / f"{name}.avi", DecodeConfig()), 32)])
        for name in names
    ]
    for i, clip in enumerate(clips):
        assert dissolve_score(clip) < 1
        assert dissolve_score(blend(clip, clips[i - 1], 6, 15)) > 1
