"""Known camera motion goes, motion in the scene stays, and failure is never passed off as success."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture, shaky_cameras

from vgan.config import StabilizeConfig
from vgan.errors import BadVideo
from vgan.video.register import compose, register, registration_images
from vgan.video.stabilize import at_frame_size, motion, render, stabilize, unstabilized

T = 16
HEIGHT, WIDTH = 128, 170
CORNERS = np.array([[0, 0, 1], [WIDTH, 0, 1], [0, HEIGHT, 1], [WIDTH, HEIGHT, 1]]).T


def corner_errors_px(estimated: np.ndarray, cameras: list[np.ndarray]) -> np.ndarray:
    """(T, 4): how far the estimate puts each frame's corners from where the true cameras do, in the first frame."""
    truth = np.stack([np.linalg.inv(cameras[0]) @ each for each in cameras])
    return np.linalg.norm(((estimated - truth) @ CORNERS)[:, :2], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_register_shaken_texture_recovers_the_camera(seed):
    cameras = shaky_cameras(seed, T)
    frames = film([make_texture(seed)] * T, cameras)
    estimated = compose(register(list(map(to_gray, frames)), StabilizeConfig()))
    shake = np.median(corner_errors_px(np.tile(np.eye(3), (T, 1, 1)), cameras)[1:])
    error = np.median(corner_errors_px(estimated, cameras)[1:])
    assert shake > 4
    assert error < 0.5


def to_gray(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def test_register_at_half_size_gives_transforms_of_the_full_frame():
    cameras = shaky_cameras(1, 8)
    frames = film([make_texture(1)] * 8, cameras)
    grays, scale = registration_images(frames, 96)
    estimated = at_frame_size(compose(register(grays, StabilizeConfig(size=96))), scale)
    assert np.median(corner_errors_px(estimated, cameras)[1:]) < 1.0


def test_stabilize_shaken_texture_stands_still():
    frames = film([make_texture(4)] * T, shaky_cameras(4, T))
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    shaken, _ = unstabilized(frames, 64)
    assert clip.shape == (T, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert motion(clip) < 0.2 * motion(shaken)
    assert evidence.stabilized
    assert evidence.jitter_px > 4
    assert evidence.residual_px < 1
    assert 0 < evidence.filled_fraction < 0.5


def scenes_with_a_red_square(positions: list[tuple[int, int]]) -> list[np.ndarray]:
    """The texture in gray, with a red square at each (x, y)."""
    background = cv2.cvtColor(cv2.cvtColor(make_texture(7), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    scenes = []
    for x, y in positions:
        scene = background.copy()
        scene[y : y + 24, x : x + 24] = (255, 0, 0)
        scenes.append(scene)
    return scenes


def red_centres(clip: np.ndarray) -> np.ndarray:
    """(T, 2): x, y of the red pixels' centre in each frame."""
    red = clip[..., 0].astype(int) - clip[..., 1] > 128
    return np.stack([np.argwhere(each).mean(0)[::-1] for each in red])


def test_stabilize_static_camera_keeps_the_objects_motion():
    scenes = scenes_with_a_red_square([(170 + 3 * t, 200) for t in range(T)])
    frames = film(scenes, [camera((0, 0))] * T)
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    as_filmed, _ = unstabilized(frames, 64)
    assert np.abs(clip.astype(int) - as_filmed).mean() < 1.0
    travelled = red_centres(clip)[-1] - red_centres(clip)[0]
    assert travelled == pytest.approx([3 * (T - 1) / 2, 0], abs=0.5)  # 128 px become 64
    assert evidence.jitter_px < 0.3


def test_stabilize_shaken_camera_keeps_the_objects_motion():
    scenes = scenes_with_a_red_square([(170 + 3 * t, 200) for t in range(T)])
    cameras = [camera((0, 0)), *shaky_cameras(9, T - 1, shift_px=3.0)]
    clip, _ = stabilize(film(scenes, cameras), StabilizeConfig(), 64)
    travelled = red_centres(clip) - red_centres(clip)[0]
    expected = np.stack([[3 * t / 2, 0] for t in range(T)])
    assert np.abs(travelled - expected).max() < 1.0


def test_stabilize_twice_gives_the_same_bytes():
    frames = film([make_texture(2)] * T, shaky_cameras(2, T))
    first, evidence = stabilize(frames, StabilizeConfig(), 64)
    cv2.setRNGSeed(12345)
    second, evidence_again = stabilize(frames, StabilizeConfig(), 64)
    assert first.tobytes() == second.tobytes()
    assert evidence == evidence_again


def test_render_fills_from_the_frame_rendered_before():
    frames = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (10, 100, 200)])
    shift = np.tile(np.eye(3), (3, 1, 1))
    shift[1, 0, 2], shift[2, 0, 2] = 32, 64  # pixels: a quarter of the frame has no source, then half
    clip, filled = render(frames, shift, 64)
    assert (clip[1, :, :16] == 10).all()
    assert (clip[1, :, 18:] == 100).all()
    assert (clip[2, :, :16] == 10).all()  # recursive: the fill of the fill
    assert (clip[2, :, 18:32] == 100).all()
    assert (clip[2, :, 34:] == 200).all()
    assert filled == pytest.approx([0, 0.25, 0.5], abs=0.03)


def test_render_without_motion_is_area_reduction_of_the_middle():
    frames = film([make_texture(3)] * 2, [camera((0, 0))] * 2)
    clip, filled = render(frames, np.tile(np.eye(3), (2, 1, 1)), 64)
    middle = cv2.resize(frames[0][:, 21:149], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(clip[0], middle)
    assert np.array_equal(clip[1], middle)
    assert (filled == 0).all()


def test_render_detail_too_fine_for_the_output_does_not_flicker_as_the_camera_moves():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: all of it must average out at half size
    shift = np.tile(np.eye(3), (5, 1, 1))
    shift[:, 0, 2] = [0, 0.25, 0.5, 0.75, 1.0]
    clip, _ = render(np.stack([stripes] * 5), shift, 64)
    assert np.ptp(clip[:, 4:-4, 4:-4].mean(-1), axis=0).max() < 16


def reason_of_failure(frames: np.ndarray, config: StabilizeConfig) -> str:
    with pytest.raises(BadVideo) as caught:
        stabilize(frames, config, 64)
    assert caught.value.stage == "stabilize"
    return caught.value.reason


def test_stabilize_failures_name_their_reason():
    texture = make_texture(5)
    still = [camera((0, 0))] * 8
    blank = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    assert reason_of_failure(blank, StabilizeConfig()) == "too_few_matches"
    zoomed = film([texture] * 16, still + [camera((0, 0), zoom=1.25)] * 8)
    assert reason_of_failure(zoomed, StabilizeConfig()) == "scale_jump"
    panned = film([texture] * 16, [camera((9.0 * t - 70, 0)) for t in range(16)])
    assert reason_of_failure(panned, StabilizeConfig()) == "too_much_fill"
    shaken = film([texture] * 8, shaky_cameras(5, 8))
    assert reason_of_failure(shaken, StabilizeConfig(max_residual_px=0.01)) == "large_residual"
    assert reason_of_failure(shaken, StabilizeConfig(min_inlier_ratio=1.01)) == "low_inlier_ratio"
    flash = film([texture] * 8, still)
    flash[4] = np.clip(flash[4].astype(int) + 60, 0, 255)
    assert reason_of_failure(flash, StabilizeConfig()) == "photometric"


def test_stabilize_window_with_a_cut_is_refused():
    frames = film([make_texture(5)] * 8 + [make_texture(6)] * 8, [camera((0, 0))] * 16)
    assert reason_of_failure(frames, StabilizeConfig())


@pytest.mark.parametrize("config", [StabilizeConfig(preset="off"), StabilizeConfig(keep_failed=True)])
def test_stabilize_kept_unregistered_clip_says_so(config):
    blank = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    clip, evidence = stabilize(blank, config, 64)
    assert clip.shape == (4, 64, 64, 3)
    assert not evidence.stabilized
