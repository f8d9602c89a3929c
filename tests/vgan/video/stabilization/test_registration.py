"""Registration recovers known camera motion to a fraction of a pixel, from the first frame to the last."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from moving_pictures import HEIGHT, WIDTH, camera, corner_errors_px, film, make_texture, shaken, shaky_cameras

from vgan.errors import VideoError
from vgan.video.config import DecodeConfig, StabilizeConfig
from vgan.video.decoding.decode import frames
from vgan.video.stabilization.drift_correction import align, make_template
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.registration import Features, match, register

T = 32
CONFIG = StabilizeConfig()


def to_gray(pictures: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])


def true_transforms(cameras: list[np.ndarray]) -> np.ndarray:
    """Return the transforms (T, 3, 3) from each frame to the first for these cameras."""
    return np.stack([np.linalg.inv(cameras[0]) @ transform for transform in cameras])


@pytest.mark.parametrize("seed", range(3))
def test_register_shaken_texture_recovers_the_camera(seed):
    cameras = shaky_cameras(seed, T)
    grays = to_gray(film([make_texture(seed)] * T, cameras))
    truth = true_transforms(cameras)
    shake = corner_errors_px(np.tile(IDENTITY, (T, 1, 1)), truth, HEIGHT, WIDTH)[1:]
    errors = corner_errors_px(register(grays, CONFIG).transforms, truth, HEIGHT, WIDTH)[1:]
    assert np.median(shake) > 4
    assert np.median(errors) < 0.15
    assert np.percentile(errors, 95) < 0.5


def test_register_matches_are_refined_beyond_the_small_image():
    grays = to_gray(film([make_texture(0)] * 8, shaky_cameras(0, 8)))
    # The error of SIFT's keypoints at 64 px is 0.25 to 0.35 px.
    assert max(pair.residual_px for pair in register(grays, CONFIG).pairs) < 0.2


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("name", ["Archery_g09", "PlayingPiano_g08", "PlayingPiano_g14"])  # static camera; people move
def test_register_real_video_shaken_by_known_motion_recovers_it(shared: Path, name, still):
    path = shared / f"data/ucf101/UCF-101/{name.split('_')[0]}/v_{name}_c01.avi"
    video = np.stack(
        [frame.image for _, frame in zip(range(T), frames(path, DecodeConfig(short_side=1000)), strict=False)]
    )
    moved, truth = shaken(np.repeat(video[:1], T, axis=0) if still else video, seed=0)
    grays = to_gray(moved)
    errors = corner_errors_px(register(grays, CONFIG).transforms, truth, *grays.shape[1:])[1:]
    assert np.median(errors) < 0.5
    assert np.percentile(errors, 95) < 1.5


def test_register_errors_do_not_accumulate_over_the_window():
    cameras = shaky_cameras(11, 4 * T)
    grays = to_gray(film([make_texture(11)] * (4 * T), cameras))
    registration = register(grays, CONFIG)
    errors = corner_errors_px(registration.transforms, true_transforms(cameras), HEIGHT, WIDTH)
    assert np.median(errors[-T:]) < 0.15
    assert registration.drift_px < 0.5


@pytest.mark.parametrize("size", [64, 96])
def test_register_frames_of_another_size_gives_transforms_of_their_own_pixels(size):
    cameras = shaky_cameras(1, 8)
    scale = size / HEIGHT
    width = round(WIDTH * scale)
    grays = to_gray(film([make_texture(1)] * 8, cameras))
    small = np.stack([cv2.resize(gray, (width, size), interpolation=cv2.INTER_AREA) for gray in grays])
    reduce = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    truth = reduce @ true_transforms(cameras) @ np.linalg.inv(reduce)
    errors = corner_errors_px(register(small, CONFIG).transforms, truth, size, width)[1:]
    assert np.median(errors) < 0.3


def test_register_does_not_depend_on_the_number_of_threads():
    grays = to_gray(film([make_texture(2)] * 8, shaky_cameras(2, 8)))
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 2):
            cv2.setNumThreads(count)
            cv2.setRNGSeed(count)
            results.append(register(grays, CONFIG))
    finally:
        cv2.setNumThreads(threads)
    assert results[0].transforms.tobytes() == results[1].transforms.tobytes()
    assert results[0].pairs == results[1].pairs


def test_register_repeated_frame_is_the_identity_and_no_pair():
    cameras = shaky_cameras(3, 6)
    grays = np.repeat(to_gray(film([make_texture(3)] * 6, cameras)), 2, axis=0)
    registration = register(grays, CONFIG)
    assert np.array_equal(registration.transforms[::2], registration.transforms[1::2])
    assert len(registration.pairs) == 5


def test_register_scene_with_few_features_is_registered_on_large_images():
    scene = make_texture(4)
    scene[:] = 128
    rng = np.random.default_rng(4)
    for x, y in rng.integers(140, 280, (40, 2)):  # spots too few and too weak for an image of 64 px
        scene[y : y + 4, x : x + 4] = rng.choice([80, 176])
    cameras = shaky_cameras(4, 8, shift_px=2.0)
    grays = to_gray(film([scene] * 8, cameras))
    with pytest.raises(VideoError):
        register(np.stack([cv2.resize(g, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for g in grays]), CONFIG)
    errors = corner_errors_px(register(grays, CONFIG).transforms, true_transforms(cameras), HEIGHT, WIDTH)
    assert np.median(errors) < 0.5


def test_register_unrelated_frames_are_rejected():
    noise = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH), np.uint8)
    with pytest.raises(VideoError) as caught:
        register(noise, dataclasses.replace(CONFIG, min_matches=30))
    assert (caught.value.stage, caught.value.reason) == ("stabilize", "too_few_matches")


def test_align_corrects_a_small_error_at_any_exposure():
    gray = to_gray(film([make_texture(5)] * 2, [camera((0, 0)), camera((0.5, -0.4), 0.2, 1.003)]))
    truth = np.linalg.inv(camera((0, 0))) @ camera((0.5, -0.4), 0.2, 1.003)
    darker = np.round(0.8 * gray[1] + 10).astype(np.uint8)
    template = make_template(gray[0])
    once, overlap = align(template, darker, IDENTITY)
    twice, _ = align(template, darker, once)
    before = corner_errors_px(IDENTITY[None], truth[None], HEIGHT, WIDTH).max()
    assert corner_errors_px(once[None], truth[None], HEIGHT, WIDTH).max() < 0.3 * before
    assert corner_errors_px(twice[None], truth[None], HEIGHT, WIDTH).max() < 0.1 * before
    assert overlap > 0.9


def test_align_blank_images_are_not_moved():
    blank = np.zeros((HEIGHT, WIDTH), np.uint8)
    aligned, _ = align(make_template(blank), blank, IDENTITY)
    assert np.allclose(aligned, IDENTITY)


def test_match_returns_the_nearest_and_omits_ambiguous_keypoints():
    one, two, three = np.eye(128, dtype=np.float32)[:3] * 512
    before = Features(np.zeros((2, 2), np.float32), np.stack([one, three]))
    after = Features(np.zeros((3, 2), np.float32), np.stack([two, one, two]))
    index_before, index_after = match(before, after, 0.7)
    assert (index_before.tolist(), index_after.tolist()) == ([0], [1])
