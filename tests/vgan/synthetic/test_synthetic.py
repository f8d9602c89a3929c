"""Synthetic action set: UCF101's layout, class-specific motion, and ground-truth camera motion."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vgan.synthetic import CLASSES, draw_clip, make_action_set, split_test_groups
from vgan.transfer.ucf101 import read_classes, read_split

SMALL = (96, 128)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def stabilize(frames: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Warp frames (T, H, W, 3) back by the true camera motion."""
    height, width = frames.shape[1:3]
    inverses = [np.linalg.inv(matrix) for matrix in camera]
    return np.stack(
        [cv2.warpPerspective(frame, matrix, (width, height)) for frame, matrix in zip(frames, inverses, strict=True)]
    )


def test_draw_action_set_is_read_as_ucf101(tmp_path: Path) -> None:
    classes = ("Spin", "Bounce", "SlideLeft")
    progress: list[tuple[int, int]] = []
    drawn = make_action_set(
        tmp_path, classes, groups=4, videos_per_group=2, num_frames=6, size=SMALL,
        progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert drawn.num_videos == 24
    assert progress[-1] == (24, 24)
    assert read_classes(tmp_path / "ucfTrainTestlist") == {"Bounce": 0, "SlideLeft": 1, "Spin": 2}
    for number in (1, 2, 3):
        split = read_split(drawn.root, number)
        assert split.missing == ()
        test = [video for video in split.videos if video.side == "test"]
        assert (len(test), len(split.videos)) == (6, 24)
        assert {video.group for video in test} == set(drawn.test_groups[number - 1])
    assert sorted(path.name for path in (tmp_path / "UCF-101" / "Spin").iterdir())[:2] == [
        "v_Spin_g01_c01.avi",
        "v_Spin_g01_c02.avi",
    ]


def test_draw_action_set_lists_follow_the_official_format(tmp_path: Path) -> None:
    make_action_set(tmp_path, ("Grow",), groups=3, num_frames=2, size=SMALL)
    lists = tmp_path / "ucfTrainTestlist"
    assert (lists / "trainlist01.txt").read_bytes() == b"Grow/v_Grow_g02_c01.avi 1\r\nGrow/v_Grow_g03_c01.avi 1\r\n"
    assert (lists / "testlist01.txt").read_bytes() == b"Grow/v_Grow_g01_c01.avi\r\n"
    assert (lists / "classInd.txt").read_bytes() == b"1 Grow\r\n"


def test_draw_action_set_videos_hold_the_drawn_frames_at_their_rate(tmp_path: Path) -> None:
    make_action_set(tmp_path, ("Circle",), groups=3, num_frames=7, size=SMALL, seed=5, fps=20)
    path = tmp_path / "UCF-101/Circle/v_Circle_g02_c01.avi"
    frames = decode(path)
    truth = draw_clip("Circle", group=2, seed=5, num_frames=7, size=SMALL, fps=20).frames
    assert frames.shape == truth.shape
    assert np.abs(frames.astype(int) - truth).mean() < 6  # lossy compression; adjacent groups differ by 50
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 20


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (25, (range(1, 8), range(8, 15), range(15, 22))),
        (12, (range(1, 4), range(4, 7), range(7, 10))),
        (3, (range(1, 2), range(2, 3), range(3, 4))),
    ],
)
def test_split_test_groups_are_official_at_25_and_scaled_below(groups: int, expected: tuple[range, ...]) -> None:
    assert tuple(split_test_groups(groups, split) for split in (1, 2, 3)) == tuple(map(tuple, expected))


@pytest.mark.parametrize("groups", range(3, 40))
def test_split_test_groups_are_disjoint_and_leave_training_groups(groups: int) -> None:
    blocks = [set(split_test_groups(groups, split)) for split in (1, 2, 3)]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    assert set.union(*blocks) <= set(range(1, groups + 1))
    assert all(len(block) < groups for block in blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 2}, "groups"), ({"classes": ("Nap",)}, "Nap"), ({"classes": ("Spin", "Spin")}, "distinct")],
)
def test_draw_action_set_invalid_options_are_rejected(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_action_set(tmp_path, **options)


def test_draw_clip_is_a_function_of_its_seed() -> None:
    first, again, other = (draw_clip("Bounce", seed=seed, num_frames=4, size=SMALL) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.camera, again.camera)
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.parametrize("name", CLASSES)
def test_draw_clip_camera_truth_stabilizes_the_background(name: str) -> None:
    clip = draw_clip(name, num_frames=32, size=SMALL, shake_px=2.0)
    steady = stabilize(clip.frames, clip.camera)
    inside = np.s_[:, 16:-16, 16:-16]  # warping back leaves empty borders
    shaken_change, steady_change = (
        np.median(np.abs(np.diff(frames[inside].astype(int), axis=0)), axis=(1, 2, 3)).mean()
        for frames in (clip.frames, steady)
    )
    assert steady_change < 0.6 * shaken_change  # the rest is interpolation error
    np.testing.assert_array_equal(clip.camera[0], np.eye(3))


def test_draw_clip_shake_has_the_requested_size_and_can_be_off() -> None:
    center = np.array([64.0, 48.0, 1.0])
    paths = [
        (draw_clip("Spin", index=i, num_frames=40, size=(240, 320), shake_px=1.5).camera @ center) for i in range(6)
    ]
    steps = [np.diff(path[:, :2], axis=0) for path in paths]
    assert 1.0 < np.sqrt(np.mean(np.concatenate(steps) ** 2) * 2) < 2.0
    still = draw_clip("Spin", num_frames=5, size=SMALL, shake_px=0.0)
    np.testing.assert_allclose(still.camera, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12)


def test_draw_clip_backgrounds_give_sift_enough_to_match() -> None:
    sift = cv2.SIFT_create(nfeatures=200)
    for group in range(1, 9):
        frame = draw_clip("Grow", group=group, num_frames=1).frames[0]
        gray = cv2.cvtColor(cv2.resize(frame, (171, 128), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        assert len(sift.detect(gray)) >= 64  # eight times the matches that registration requires, at its frame size


def test_draw_clip_motion_identifies_the_class() -> None:
    for index in range(1, 6):
        tracks = {name: draw_clip(name, index=index, num_frames=32, size=SMALL).track for name in CLASSES}
        steps = {name: np.diff(track, axis=0) for name, track in tracks.items()}
        assert np.all(steps["SlideLeft"][:, 0] < 0)
        assert np.all(steps["SlideRight"][:, 0] > 0)
        assert np.all(steps["Grow"][:, 3] > 0)
        assert abs(steps["Spin"][:, 2].sum()) > 1.5 * np.pi
        assert np.ptp(tracks["Bounce"][:, 1]) > 0.25 * SMALL[0]
        assert np.ptp(tracks["Bounce"][:, 0]) == 0
        assert min(np.ptp(tracks["Circle"][:, :2], axis=0)) > 0.25 * SMALL[0]


def test_draw_clip_object_follows_its_track() -> None:
    clip = draw_clip("SlideLeft", num_frames=55, size=SMALL, shake_px=0.0)
    empty = np.median(clip.frames, axis=0)  # over a full pass, each pixel is background most of the time
    for t in (0, 31):
        changed = np.abs(clip.frames[t] - empty).sum(axis=2) > 40
        x = np.flatnonzero(changed.any(axis=0)).mean()
        assert abs(x - clip.track[t, 0]) < 10


def test_draw_clip_first_frame_is_the_same_in_every_class() -> None:
    for group, index in ((1, 1), (3, 2)):
        clips = [draw_clip(name, group=group, index=index, num_frames=9, size=SMALL) for name in CLASSES]
        assert len({clip.frames[0].tobytes() for clip in clips}) == 1
        assert len({clip.frames[8].tobytes() for clip in clips}) == len(CLASSES)
        assert len({clip.camera.tobytes() for clip in clips}) == 1


def test_draw_clip_background_depends_on_the_group() -> None:
    still = {"num_frames": 1, "size": SMALL, "shake_px": 0.0}
    corner = np.s_[0, :10, :10]  # no object reaches the corner
    same = draw_clip("Spin", group=3, index=1, **still).frames[corner]
    np.testing.assert_array_equal(same, draw_clip("Spin", group=3, index=2, **still).frames[corner])
    assert not np.array_equal(same, draw_clip("Spin", group=4, index=1, **still).frames[corner])
