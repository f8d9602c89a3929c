"""The dense measure of global motion agrees with known motion and ignores moving objects and filled pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from moving_pictures import make_texture

from vgan.video.stabilization.global_motion import NO_TEXTURE, measure_global_motion

T, SIDE = 8, 64


def clip_of(shifts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a clip (T, SIDE, SIDE, 3) of a texture at half size that moves by `shifts` (T, 2), pixels at 128 px."""
    texture = make_texture(seed)
    moved = [
        cv2.warpAffine(texture, np.array([[1, 0, -x], [0, 1, -y]]), (128, 128), flags=cv2.INTER_CUBIC)
        for x, y in 100 + np.asarray(shifts, float)
    ]
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in moved])


@pytest.mark.parametrize("step_px", [0.0, 0.25, 1.0, 2.0])
def test_global_motion_equals_a_known_shift(step_px):
    motion = measure_global_motion(clip_of(np.outer(np.arange(T), [0.6 * step_px, 0.8 * step_px])))
    assert motion.rms_px == pytest.approx(step_px, rel=0.15, abs=0.03)
    assert motion.agreement > 0.9


def test_global_motion_fast_motion_is_far_from_steady():
    assert measure_global_motion(clip_of(np.outer(np.arange(T), [7.0, 0]))).rms_px > 1.5


def test_global_motion_ignores_an_object_that_moves_through_a_steady_scene():
    clip = clip_of(np.zeros((T, 2)))
    for t in range(T):
        clip[t, 20:44, 4 * t : 4 * t + 20] = make_texture(5, 64)[:24, :20]
    motion = measure_global_motion(clip)
    assert motion.rms_px < 0.1
    assert 0.5 < motion.agreement < 1


def test_global_motion_of_graphics_is_not_measured_where_they_are_excluded():
    clip = clip_of(np.outer(np.arange(T), [2.0, 0]))
    clip[:, 16:] = make_texture(7, 64)[16:, :64]  # still graphics over three quarters of the picture
    around = np.zeros((1, SIDE, SIDE), bool)
    around[:, :16] = True
    assert measure_global_motion(clip).rms_px < 0.1
    assert measure_global_motion(clip, around).rms_px == pytest.approx(2.0, rel=0.2)


def test_global_motion_of_repeated_frames_is_that_of_the_distinct_ones():
    clip = clip_of(np.outer(np.arange(T), [1.0, 0]))
    assert measure_global_motion(np.repeat(clip, 2, axis=0)).rms_px == pytest.approx(measure_global_motion(clip).rms_px)


@pytest.mark.parametrize("clip", [np.zeros((T, SIDE, SIDE, 3), np.uint8), np.full((T, 128, 128, 3), 200, np.uint8)])
def test_global_motion_without_texture_has_no_agreement(clip):
    assert measure_global_motion(clip) == NO_TEXTURE
