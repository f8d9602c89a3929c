"""Known camera motion is removed, motion in the scene is preserved, and failures are reported."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture, shaky_cameras

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video.config import StabilizeConfig
from vgan.video.stabilization import reference
from vgan.video.stabilization.clip_scores import mean_frame_difference
from vgan.video.stabilization.rendering import BORDER, downscale, render
from vgan.video.stabilization.stabilize import crop_only, stabilize

T = 16
HEIGHT, WIDTH = 128, 170


def test_stabilize_removes_the_motion_of_a_shaken_texture():
    frames = film([make_texture(4)] * T, shaky_cameras(4, T))
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    shaken, _ = crop_only(frames, 64)
    assert clip.shape == (T, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert mean_frame_difference(clip) < 0.2 * mean_frame_difference(shaken)
    assert evidence.stabilized
    assert evidence.jitter_px > 4
    assert evidence.residual_px < 1
    assert 0 < evidence.filled_fraction < 0.5


def scenes_with_a_red_square(positions: list[tuple[int, int]]) -> list[np.ndarray]:
    """Create a scene per position: the gray texture with a red square at (x, y)."""
    background = cv2.cvtColor(cv2.cvtColor(make_texture(7), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    scenes = []
    for x, y in positions:
        scene = background.copy()
        scene[y : y + 24, x : x + 24] = (255, 0, 0)
        scenes.append(scene)
    return scenes


def red_centers(clip: np.ndarray) -> np.ndarray:
    """Return the center (x, y) of the red pixels in each frame, (T, 2)."""
    red = clip[..., 0].astype(int) - clip[..., 1] > 128
    return np.stack([np.argwhere(mask).mean(0)[::-1] for mask in red])


def test_stabilize_static_camera_keeps_the_objects_motion():
    scenes = scenes_with_a_red_square([(170 + 3 * t, 200) for t in range(T)])
    frames = film(scenes, [camera((0, 0))] * T)
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    as_filmed, _ = crop_only(frames, 64)
    assert np.abs(clip.astype(int) - as_filmed).mean() < 1.0
    displacement = red_centers(clip)[-1] - red_centers(clip)[0]
    assert displacement == pytest.approx([3 * (T - 1) / 2, 0], abs=0.5)  # 128 px become 64
    assert evidence.jitter_px < 0.3


def test_stabilize_shaken_camera_keeps_the_objects_motion():
    scenes = scenes_with_a_red_square([(170 + 3 * t, 200) for t in range(T)])
    cameras = [camera((0, 0)), *shaky_cameras(9, T - 1, shift_px=3.0)]
    clip, _ = stabilize(film(scenes, cameras), StabilizeConfig(), 64)
    displacement = red_centers(clip) - red_centers(clip)[0]
    expected = np.stack([[3 * t / 2, 0] for t in range(T)])
    assert np.abs(displacement - expected).max() < 1.0


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
    shift[1, 0, 2], shift[2, 0, 2] = 32, 64  # pixels: a quarter of the frame is uncovered, then half
    clip, covered = render(frames, shift, 64)
    assert (clip[1, :, :16] == 10).all()
    assert (clip[1, :, 21:] == 100).all()
    assert (clip[2, :, :16] == 10).all()  # recursive: filled from filled pixels
    assert (clip[2, :, 21:32] == 100).all()
    assert (clip[2, :, 37:] == 200).all()
    assert 1 - covered.mean((1, 2)) == pytest.approx([0, 0.25 + BORDER, 0.5 + BORDER], abs=0.03)


def test_render_leaves_no_stripes_of_a_black_border_where_it_fills():
    texture = make_texture(5).clip(60)
    shift = 8 * np.arange(8)  # of the camera, pixels
    frames = np.stack([texture[:128, x : x + 170] for x in shift])
    frames[:, :, :5] = frames[:, :, -5:] = 0  # black lines at both sides, as captured film has
    transforms = np.tile(np.eye(3), (8, 1, 1))
    transforms[:, 0, 2] = shift
    clip, covered = render(frames, transforms, 64)
    assert not covered[-1].all()
    assert clip.min() > 50


def test_render_without_motion_is_area_reduction_of_the_middle():
    frames = film([make_texture(3)] * 2, [camera((0, 0))] * 2)
    clip, covered = render(frames, np.tile(np.eye(3), (2, 1, 1)), 64)
    middle = cv2.resize(frames[0][:, 21:149], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(clip[0], middle)
    assert np.array_equal(clip[1], middle)
    assert covered.all()


def test_render_detail_too_fine_for_the_output_does_not_flicker_as_the_camera_moves():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: averages to gray at half size
    shift = np.tile(np.eye(3), (5, 1, 1))
    shift[:, 0, 2] = [0, 0.25, 0.5, 0.75, 1.0]
    clip, _ = render(np.stack([stripes] * 5), shift, 64)
    assert np.ptp(clip[:, 4:-4, 4:-4].mean(-1), axis=0).max() < 16


def scores(frames: np.ndarray, config: StabilizeConfig | None = None) -> ClipScores:
    return stabilize(frames, config or StabilizeConfig(), 64)[1]


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_stabilize_blank_window_is_refused_as_unmatched(preset):
    blank = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    blank[::2] += 1  # equal frames are not matched
    with pytest.raises(VideoError) as caught:
        stabilize(blank, StabilizeConfig(preset=preset), 64)
    assert (caught.value.stage, caught.value.reason) == ("stabilize", "too_few_matches")


def test_stabilize_scores_of_a_good_window_are_good():
    frames = film([make_texture(5)] * 8, shaky_cameras(5, 8))
    evidence = scores(frames)
    assert evidence.residual_px < 0.5
    assert evidence.inlier_ratio > 0.7
    assert evidence.num_matches >= 8
    assert evidence.scale_step < 1.06
    assert evidence.zoom < 1.06
    assert evidence.drift_px < 1.0
    assert evidence.photometric < 15
    assert evidence.moving_fraction < 0.2


def test_stabilize_bad_windows_are_scored_not_rejected():
    texture = make_texture(5)
    still = [camera((0, 0))] * 8
    zoomed = scores(film([texture] * 16, still + [camera((0, 0), zoom=1.25)] * 8))
    assert zoomed.scale_step == pytest.approx(1.25, abs=0.02)
    creeping = scores(film([texture] * 16, [camera((0, 0), zoom=1.02**t) for t in range(16)]))
    assert creeping.scale_step == pytest.approx(1.02, abs=0.01)
    assert creeping.zoom == pytest.approx(1.02**15, abs=0.03)
    panned = scores(film([texture] * 16, [camera((9.0 * t - 70, 0)) for t in range(16)]))
    assert panned.filled_fraction > 0.5
    assert panned.jitter_px == pytest.approx(9.0, abs=0.3)
    flash = film([texture] * 8, still)
    flash[4] = np.clip(flash[4].astype(int) + 60, 0, 255)
    assert scores(flash).photometric > 30


def test_stabilize_pixel_scores_do_not_depend_on_the_frames_size():
    frames = film([make_texture(8)] * 12, shaky_cameras(8, 12))
    larger = np.stack([cv2.resize(frame, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC) for frame in frames])
    at_128, at_96 = scores(larger), scores(larger, StabilizeConfig(size=96))
    by_reference = scores(larger, StabilizeConfig(preset="reference"))
    assert at_128.jitter_px == pytest.approx(scores(frames).jitter_px, rel=0.05)
    assert at_96.jitter_px == pytest.approx(at_128.jitter_px, rel=0.05)
    assert by_reference.jitter_px == pytest.approx(at_128.jitter_px, rel=0.05)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_stabilize_window_with_a_cut_is_rejected_or_has_a_bad_score(preset):
    frames = film([make_texture(5)] * 8 + [make_texture(6)] * 8, [camera((0, 0))] * 16)
    try:
        detected = scores(frames, StabilizeConfig(preset=preset)).photometric > 30
    except VideoError as error:
        detected = error.reason in ("too_few_matches", "collapsed")
    assert detected


def test_stabilize_by_the_reference_removes_the_motion():
    frames = film([make_texture(4)] * 8, shaky_cameras(4, 8))
    clip, evidence = stabilize(frames, StabilizeConfig(preset="reference"), 64)
    shaken, _ = crop_only(frames, 64)
    assert clip.shape == (8, 64, 64, 3)
    assert mean_frame_difference(clip) < 0.3 * mean_frame_difference(shaken)
    assert evidence.stabilized
    assert evidence.residual_px < 1
    assert evidence.num_matches >= 10
    assert 0 < evidence.filled_fraction < 0.5


def test_reference_render_fills_from_the_composite_before():
    pictures = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (10, 100, 200)])
    shift = np.tile(np.eye(3), (3, 1, 1))
    shift[1, 0, 2], shift[2, 0, 2] = 32, 64
    clip, covered = reference.render(pictures, shift, 64)
    assert (clip[1, :, :15] == 10).all()
    assert (clip[1, :, 18:] == 100).all()
    assert (clip[2, :, :15] == 10).all()
    assert (clip[2, :, 18:31] == 100).all()
    assert (clip[2, :, 34:] == 200).all()
    assert 1 - covered.mean((1, 2)) == pytest.approx([0, 0.25, 0.5], abs=0.04)


def test_stabilize_by_the_reference_twice_gives_the_same_bytes():
    frames = film([make_texture(2)] * 6, shaky_cameras(2, 6))
    config = StabilizeConfig(preset="reference")
    first, evidence = stabilize(frames, config, 64)
    cv2.setRNGSeed(12345)
    second, evidence_again = stabilize(frames, config, 64)
    assert first.tobytes() == second.tobytes()
    assert evidence == evidence_again


def test_stabilize_repeated_frames_changes_nothing():
    frames = film([make_texture(6)] * 8, shaky_cameras(6, 8))
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    doubled, evidence_doubled = stabilize(np.repeat(frames, 2, axis=0), StabilizeConfig(), 64)
    assert np.array_equal(doubled[::2], clip)
    assert np.array_equal(doubled[1::2], clip)
    assert evidence_doubled.num_matches == evidence.num_matches
    assert evidence_doubled.residual_px == evidence.residual_px


def test_stabilize_does_not_change_a_frozen_window():
    frames = np.repeat(film([make_texture(6)], [camera((0, 0))]), 8, axis=0)
    clip, evidence = stabilize(frames, StabilizeConfig(), 64)
    assert (clip == clip[0]).all()
    assert evidence.motion == evidence.moving_fraction == evidence.filled_fraction == 0


def test_reduced_frames_keep_their_shape_and_are_never_enlarged():
    frames = np.random.default_rng(0).integers(0, 256, (2, 360, 640, 3), np.uint8)
    assert downscale(frames, 128).shape == (2, 128, 228, 3)
    assert downscale(frames, 360) is frames
    assert downscale(frames, 400) is frames
    assert np.abs(downscale(frames, 90)[0].astype(int) - cv2.resize(frames[0], (160, 90), interpolation=3)).max() <= 1


@pytest.mark.parametrize("config", [StabilizeConfig(preset="off"), StabilizeConfig(keep_failed=True)])
def test_stabilize_clip_without_registration_is_marked(config):
    blank = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    blank[::2] += 1
    clip, evidence = stabilize(blank, config, 64)
    assert clip.shape == (4, 64, 64, 3)
    assert not evidence.stabilized
