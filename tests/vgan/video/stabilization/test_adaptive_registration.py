"""Preset adaptive: known similarities and homographies are recovered, graphics ignored, still cameras recognized."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from moving_pictures import (
    HEIGHT,
    WIDTH,
    camera,
    corner_errors_px,
    film,
    make_texture,
    shaky_cameras,
    tracked_jitter_px,
)

from vgan.errors import VideoError
from vgan.video.config import FilterConfig, StabilizeConfig
from vgan.video.quality_filters import first_violation
from vgan.video.stabilization import adaptive_registration
from vgan.video.stabilization.adaptive_registration import register
from vgan.video.stabilization.geometry import corner_distance, distortion, limit_distortion, project
from vgan.video.stabilization.point_tracks import CELL_PX, PER_CELL, overlay_mask, spread_corners
from vgan.video.stabilization.registration import Registration
from vgan.video.stabilization.stabilize import crop_only, stabilize

T = 32
CONFIG = StabilizeConfig()
CORNERS = np.array([[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]], float)


def to_gray(pictures: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])


def slow_cameras(seed: int, num_frames: int, step_px: float = 1.5) -> list[np.ndarray]:
    """Return the transforms of a camera on a smooth random path."""
    path = np.cumsum(np.random.default_rng(seed).normal(0, step_px, (num_frames, 2)), axis=0)
    return [camera(tuple(np.clip(position - path[0], -60, 60))) for position in path]


def with_lower_third(frames: np.ndarray) -> np.ndarray:
    """Draw opaque graphics with text over the lower third of all frames."""
    frames = frames.copy()
    frames[:, 2 * HEIGHT // 3 :] = (20, 30, 90)
    for frame in frames:
        cv2.putText(frame, "BREAKING NEWS", (4, HEIGHT - 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
        cv2.putText(frame, "live from the race", (4, HEIGHT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 220, 0), 1)
    return frames


@pytest.mark.parametrize("seed", range(3))
def test_register_recovers_a_shaken_camera(seed):
    cameras = shaky_cameras(seed, T)
    truth = np.stack([np.linalg.inv(cameras[0]) @ c for c in cameras])
    registration = register(to_gray(film([make_texture(seed)] * T, cameras)), CONFIG)
    errors = corner_errors_px(registration.transforms, truth, HEIGHT, WIDTH)[1:]
    assert np.median(errors) < 0.15
    assert np.percentile(errors, 95) < 0.5
    assert registration.num_homographies == 0


def test_register_follows_a_perspective_change_by_homographies():
    texture = make_texture(4)
    perspectives = []
    for t in range(12):
        tilt = np.eye(3)
        tilt[2, 0] = 4e-4 * t  # frame to scene, about the frame's corner: a picture that turns away
        perspectives.append(camera((0, 0)) @ tilt)
    frames = np.stack(
        [
            cv2.warpPerspective(texture, h, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            for h in perspectives
        ]
    )
    registration = register(to_gray(frames), CONFIG)
    assert registration.num_homographies > 0
    for transform, perspective in zip(registration.transforms, perspectives, strict=True):
        truth = project(np.linalg.inv(perspectives[0]) @ perspective, CORNERS)
        assert np.abs(project(transform, CORNERS) - truth).max() < 1.5


def test_distortion_beyond_the_bound_is_removed_and_the_similarity_kept():
    turn = np.array([[0.9, -0.1, 4.0], [0.1, 0.9, -3.0], [0, 0, 1]])
    tilt = np.eye(3)
    tilt[2, 0] = 4e-3
    limited = limit_distortion(turn @ tilt, HEIGHT, WIDTH, 10.0)
    assert distortion(turn @ tilt, HEIGHT, WIDTH) > 15
    assert distortion(limited, HEIGHT, WIDTH) == pytest.approx(10, abs=0.01)
    assert corner_distance(limited, turn @ tilt, HEIGHT, WIDTH) == pytest.approx(
        distortion(turn @ tilt, HEIGHT, WIDTH) - 10, abs=0.01
    )
    assert limit_distortion(turn, HEIGHT, WIDTH, 10.0) is turn


def test_register_unrelated_frames_are_rejected():
    frames = np.stack([film([make_texture(seed)], [camera((0, 0))])[0] for seed in range(4)])
    with pytest.raises(VideoError) as raised:
        register(to_gray(frames), CONFIG)
    assert raised.value.reason == "too_few_matches"


def test_spread_corners_are_limited_per_cell():
    gray = to_gray(film([make_texture(0)], [camera((0, 0))]))[0]
    gray[:, : WIDTH // 2] = 128 + (gray[:, : WIDTH // 2] > 128)  # one half almost without contrast
    points = spread_corners(gray)
    cells, counts = np.unique((points // CELL_PX).astype(int), axis=0, return_counts=True)
    assert counts.max() <= 2 * PER_CELL  # cells of the half-size image are not aligned exactly
    assert len(cells) > 10


def test_overlay_is_found_over_a_moving_scene_and_not_before_a_still_camera():
    moving = film([make_texture(1)] * T, slow_cameras(1, T))
    mask, share = overlay_mask(to_gray(with_lower_third(moving)))
    assert mask is not None
    assert 0.05 < share < 0.8
    assert mask[HEIGHT // 3 + 4 :].mean() > 4 * mask[: HEIGHT // 3 - 4].mean()
    assert overlay_mask(to_gray(moving))[0] is None
    assert overlay_mask(to_gray(film([make_texture(1)] * T, [camera((0, 0))] * T)))[0] is None


@pytest.mark.parametrize("seed", range(4))
def test_stabilize_scene_behind_a_lower_third_is_steady(seed):
    frames = with_lower_third(film([make_texture(seed)] * T, slow_cameras(seed, T)))
    clip, scores = stabilize(frames, CONFIG, 64)
    scene = clip[:, :32, 8:40]  # without the graphics
    assert tracked_jitter_px(crop_only(frames, 64)[0][:, :32, 8:40]) > 2
    assert tracked_jitter_px(scene) < 0.7
    assert scores.overlay > 0
    assert first_violation(scores, FilterConfig(disabled=["too_much_fill"])) is None


def test_stabilize_still_camera_before_moving_water_is_static():
    scene = film([make_texture(3)], [camera((0, 0))])[0]
    rng = np.random.default_rng(0)
    frames = np.repeat(scene[None], T, axis=0)
    for frame in frames:  # the lower half changes completely from frame to frame
        frame[HEIGHT // 2 :] = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT // 2, WIDTH, 3), np.uint8), (0, 0), 1.5)
    clip, scores = stabilize(frames, CONFIG, 64)
    assert scores.residual_motion_px < 0.2
    assert np.abs(clip[:, :24].astype(int) - clip[0, :24]).mean() < 2
    assert first_violation(scores, FilterConfig(disabled=["photometric", "restless"])) is None


def test_stabilize_window_that_cannot_be_registered_is_kept_and_marked_failed():
    rng = np.random.default_rng(0)
    frames = np.stack(
        [cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 2) for _ in range(8)]
    )
    _, scores = stabilize(frames, CONFIG, 64)
    assert scores.registration == "failed"
    assert not scores.stabilized
    assert first_violation(scores, FilterConfig())[0] == "unregistered"


def test_stabilize_window_with_a_singular_homography_is_marked_failed(monkeypatch):
    frames = film([make_texture(2)] * 4, shaky_cameras(2, 4))
    transforms = np.stack([np.eye(3)] * 4)
    transforms[2] = [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    registration = Registration(transforms, pairs=[], drift_px=0.0)
    monkeypatch.setattr(adaptive_registration, "register", lambda *_: registration)
    _, scores = stabilize(frames, CONFIG, 64)
    assert scores.registration == "failed"


def test_stabilize_adaptive_twice_gives_the_same_bytes():
    frames = film([make_texture(2)] * 8, shaky_cameras(2, 8))
    first, scores = stabilize(frames, CONFIG, 64)
    cv2.setRNGSeed(12345)
    second, scores_again = stabilize(frames, CONFIG, 64)
    assert first.tobytes() == second.tobytes()
    assert scores == scores_again


def test_distortion_is_zero_for_similarities_and_grows_with_perspective():
    similarity = np.linalg.inv(camera((0, 0))) @ camera((7, -3), 10, 1.2)
    assert distortion(similarity, HEIGHT, WIDTH) == pytest.approx(0, abs=1e-9)
    tilted = [np.array([[1, 0, 0], [0, 1, 0], [tilt, 0, 1.0]]) for tilt in (5e-4, 1e-3, 2e-3)]
    values = [distortion(transform, HEIGHT, WIDTH) for transform in tilted]
    assert 1 < values[0] < values[1] < values[2]
