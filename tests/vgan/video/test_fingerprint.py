"""Fingerprints are robust to re-encoding and differ between videos; near-duplicates equal those of brute force."""

from __future__ import annotations

from functools import cache
from itertools import islice, product

import cv2
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.video.config import DecodeConfig, FilterConfig
from vgan.video.decoding.decode import frames
from vgan.video.encode import write_mp4
from vgan.video.fingerprint import (
    MAX_SHIFT,
    PARTS,
    motion_signs,
    motion_similarity,
    motion_words,
    near_duplicates,
    thumbnails,
)
from vgan.video.fingerprint import fingerprint as fingerprint_of_thumbnails

BOUND = FilterConfig().max_duplicate_distance_bits
SIMILAR = FilterConfig().min_duplicate_similarity


def fingerprint(clip: np.ndarray) -> str:
    return fingerprint_of_thumbnails(thumbnails(clip))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the similarity of the motion of two clips."""
    words = motion_words([motion_signs(thumbnails(clip)) for clip in (a, b)])
    return float(motion_similarity(words[:1], words[1:])[0])


def distance(a: str, b: str) -> int:
    """Return the Hamming distance of two fingerprints, bits."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def clip_of(images) -> np.ndarray:
    """Crop images to their center squares, a clip (T, 64, 64, 3)."""
    side = min(images[0].shape[:2])
    top, left = ((length - side) // 2 for length in images[0].shape[:2])
    squares = [image[top : top + side, left : left + side] for image in images]
    return np.stack([cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA) for square in squares])


def drifting(seed: int, num_frames: int = 32) -> np.ndarray:
    return film([make_texture(seed)] * num_frames, [camera((t / 3, t / 5)) for t in range(num_frames)])


def brute_force(words: np.ndarray, sources: list[str], max_bits: int, similar: np.ndarray) -> list[int]:
    repeats = [-1] * len(words)
    for later in range(len(words)):
        for earlier in range(later):
            differing = sum((int(a) ^ int(b)).bit_count() for a, b in zip(words[later], words[earlier], strict=True))
            near = differing <= max_bits and similar[earlier, later]
            if repeats[earlier] < 0 and sources[earlier] != sources[later] and near:
                repeats[later] = earlier
                break
    return repeats


def test_fingerprint_is_32_hex_digits_and_repeatable():
    clip = clip_of(drifting(0))
    assert len(fingerprint(clip)) == 32
    assert fingerprint(clip) == fingerprint(clip.copy())


def test_fingerprint_of_a_flat_clip_has_no_bits():
    noise = np.random.default_rng(0).integers(-1, 2, (32, 64, 64, 3))
    assert int(fingerprint((60 + noise).astype(np.uint8)), 16) == 0


def test_fingerprint_of_a_still_clip_has_no_bits_for_change():
    still = np.repeat(clip_of(drifting(0, 1)), 32, axis=0)
    noise = np.random.default_rng(0).integers(-3, 4, still.shape)
    assert int(fingerprint((still + noise).clip(0, 255).astype(np.uint8))[16:], 16) == 0


@pytest.mark.parametrize("seed", range(4))
def test_fingerprint_of_a_smaller_darker_reencoded_copy_is_near(tmp_path, seed):
    original = drifting(seed)
    copy = np.stack([cv2.resize(f[2:-2, 3:-3], (114, 86), interpolation=cv2.INTER_AREA) for f in original])
    write_mp4((copy * 0.9).astype(np.uint8), tmp_path / "copy.mp4", 25.0)
    decoded = [frame.image for frame in frames(tmp_path / "copy.mp4", DecodeConfig())]
    assert distance(fingerprint(clip_of(original)), fingerprint(clip_of(decoded))) <= BOUND


def test_fingerprint_of_different_videos_is_far(shared):
    paths = sorted((shared / "data/ucf101/UCF-101").glob("*/*_c01.avi"))[::7]
    clips = [clip_of([f.image for f in islice(frames(path, DecodeConfig()), 32)]) for path in paths]
    prints = [fingerprint(clip) for clip in clips]
    assert min(distance(a, b) for (i, a), (j, b) in product(enumerate(prints), repeat=2) if i < j) > BOUND


@cache
def ball(seed: int, num_frames: int = 48) -> np.ndarray:
    """Film of a bright ball that wanders before a still picture, (T, 96, 128, 3) uint8."""
    picture = make_texture(0)[:96, :128] // 2
    rng = np.random.default_rng(seed)
    path = cv2.resize(rng.uniform(20, 76, (4, 2)), (2, num_frames), interpolation=cv2.INTER_CUBIC)
    return np.stack([cv2.circle(picture.copy(), (int(x) + 16, int(y)), 12, (250, 230, 200), -1) for x, y in path])


def test_fingerprint_and_motion_of_the_mirrored_clip_are_equal():
    clip = clip_of(drifting(1))
    assert fingerprint(clip) == fingerprint(clip[:, :, ::-1])
    assert similarity(clip, clip[:, :, ::-1]) == 1
    # The mean frame's strongest odd wave is positive.
    means = [thumbnails(each).mean(0) for each in (clip, clip[:, :, ::-1])]
    np.testing.assert_allclose(*means, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_motion_of_a_reencoded_copy_is_similar_and_of_another_moment_is_not(tmp_path, seed):
    film = ball(seed)
    write_mp4((film[:, 2:-2, 3:-3] * 0.9).astype(np.uint8), tmp_path / "copy.mp4", 25.0)
    copy = [frame.image for frame in frames(tmp_path / "copy.mp4", DecodeConfig())]
    clip = clip_of(film[:32])
    assert similarity(clip, clip_of(copy[:32])) >= SIMILAR
    assert similarity(clip, clip_of(ball(seed + 10)[:32])) < SIMILAR


@pytest.mark.parametrize("later", [4, 8])
def test_motion_of_a_copy_that_starts_later_is_similar(later):
    film = ball(0)
    assert later <= MAX_SHIFT * 32 // PARTS
    assert similarity(clip_of(film[:32]), clip_of(film[later : later + 32])) >= SIMILAR


def test_motion_of_clips_without_any_is_similar_and_differs_from_motion():
    still = np.repeat(clip_of(ball(0, 1)), 32, axis=0)
    noise = np.random.default_rng(0).integers(-3, 4, (2, *still.shape))
    first, second = (still + noise).clip(0, 255).astype(np.uint8)
    assert similarity(first, second) == 1
    assert similarity(first, clip_of(ball(0)[:32])) < SIMILAR
    empty, moving = motion_words(["", motion_signs(thumbnails(clip_of(ball(0)[:32])))])
    assert motion_similarity(empty[None], empty[None]).tolist() == [1]
    assert motion_similarity(empty[None], moving[None]).tolist() == [0]


def test_near_duplicates_with_motion_keeps_other_moments_of_one_picture():
    clips = [clip_of(ball(seed)[:32]) for seed in (0, 1, 0, 1)]
    motion = motion_words([motion_signs(thumbnails(clip)) for clip in clips])
    prints, sources = ["0" * 32] * 4, ["a", "b", "c", "d"]
    assert near_duplicates(prints, sources, BOUND, motion, SIMILAR).tolist() == [-1, -1, 0, 1]
    assert near_duplicates(prints, sources, BOUND, motion, -1).tolist() == [-1, 0, 0, 0]
    assert near_duplicates(prints, sources, BOUND).tolist() == [-1, 0, 0, 0]


def test_near_duplicates_returns_the_retained_clip_of_another_source():
    a, b = "0" * 32, "f" * 32
    nearly_a = "0" * 31 + "7"
    assert near_duplicates([a, b, nearly_a, a], ["s", "s", "t", "s"], 3).tolist() == [-1, -1, 0, -1]
    assert near_duplicates([a, b, nearly_a, a], ["s", "s", "t", "s"], 2).tolist() == [-1, -1, -1, -1]


def test_near_duplicates_dropped_clip_drops_no_other():
    chain = ["0" * 32, "0" * 31 + "f", "0" * 30 + "ff"]  # consecutive distances of 4 bits
    assert near_duplicates(chain, ["a", "b", "c"], 4).tolist() == [-1, 0, -1]


@pytest.mark.parametrize("max_bits", [0, 1, 5, 10, 32])
@pytest.mark.parametrize("blocks", [(16384, 512), (64, 16)])
def test_near_duplicates_equals_brute_force(monkeypatch, max_bits, blocks):
    monkeypatch.setattr("vgan.video.fingerprint.BLOCK", blocks[0])
    monkeypatch.setattr("vgan.video.fingerprint.SMALL_BLOCK", blocks[1])
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 2, (30, 128))
    flipped = rng.random((240, 128)) < rng.choice([0, 0.02, 0.06, 0.12], (240, 1))
    bits = (originals[rng.integers(0, 30, 240)] ^ flipped).astype(np.uint8)
    words = np.packbits(bits, axis=1).view(np.uint64)
    sources = [f"video{i}" for i in rng.integers(0, 80, 240)]
    above = rng.integers(0, 1 << 16, (4, PARTS), np.uint32)
    signs = above | (above ^ 0xFFFF) << 16
    moment = rng.integers(0, 4, 240)
    hexed = [row.tobytes().hex() for row in words]
    for motion, similar in ((None, np.ones((240, 240))), (signs[moment], moment == moment[:, None])):
        expected = brute_force(words, sources, max_bits, similar)
        assert max(expected) >= 0
        assert near_duplicates(words, sources, max_bits, motion, SIMILAR).tolist() == expected
        assert near_duplicates(hexed, sources, max_bits, motion, SIMILAR).tolist() == expected


def test_near_duplicates_many_flat_clips_all_repeat_the_first():
    repeats = near_duplicates(["0" * 32] * 50_000, [f"video{i}" for i in range(50_000)], BOUND)
    assert repeats[0] == -1
    assert not repeats[1:].any()


def test_near_duplicates_of_nothing_is_empty():
    assert near_duplicates([], [], BOUND).shape == (0,)


@pytest.mark.parametrize(
    ("prints", "sources", "bits"), [(["0" * 31], ["a"], 3), (["0" * 32], [], 3), (["0" * 32], ["a"], 128)]
)
def test_near_duplicates_bad_input_is_refused(prints, sources, bits):
    with pytest.raises(ValueError, match=r"hex digits|max_bits"):
        near_duplicates(prints, sources, bits)
