"""Extraction of clips from frames in memory: clips and rejects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from moving_pictures import camera, film, make_texture, shaky_cameras

from vgan.errors import VideoError
from vgan.records import Clip, Reject
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, PrescreenConfig, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import Frame, frames

SHORT = ClipSpec(num_frames=16, stride=16)
UNSCREENED = PrescreenConfig(min_contrast=0, min_activity=0, max_frozen_fraction=0)


def timed(images: np.ndarray, fps: float = 25.0) -> list[Frame]:
    return [Frame(10 + i / fps, image) for i, image in enumerate(images)]


def still(seed: int, num_frames: int) -> np.ndarray:
    return film([make_texture(seed)] * num_frames, [camera((t / 8, 0)) for t in range(num_frames)])


def test_clips_back_to_back_with_their_start_times():
    results = list(extract_clips(timed(still(0, 50)), VideoConfig(clip=SHORT)))
    assert [type(result) for result in results] == [Clip] * 3
    assert [result.start_s for result in results] == pytest.approx([10, 10.64, 11.28])
    assert all(result.frames.shape == (16, 64, 64, 3) for result in results)


@pytest.mark.parametrize(("stride", "starts"), [(8, [0, 8, 16, 24]), (20, [0, 20])])
def test_clips_stride_overlaps_or_skips(stride, starts):
    config = VideoConfig(clip=ClipSpec(num_frames=16, stride=stride), stabilize=StabilizeConfig(preset="off"))
    results = list(extract_clips(timed(still(0, 40)), config))
    assert [result.start_s for result in results] == pytest.approx([10 + start / 25 for start in starts])


def test_clips_of_a_splice_never_span_the_cut():
    images = np.concatenate([still(0, 41), still(1, 40), still(2, 10)])
    config = VideoConfig(clip=SHORT, stabilize=StabilizeConfig(preset="off"))  # no other step can reject them
    results = list(extract_clips(timed(images), config))
    clips = [result for result in results if isinstance(result, Clip)]
    spans = [(round((clip.start_s - 10) * 25), clip.shot) for clip in clips]
    assert spans == [(0, 0), (16, 0), (41, 1), (57, 1)]
    assert [(r.stage, r.reason) for r in results if isinstance(r, Reject)] == [("shots", "too_short")]


def test_clips_gap_in_time_ends_a_shot():
    source = timed(still(0, 20)) + [Frame(frame.pts_s + 3, frame.image) for frame in timed(still(0, 20))]
    results = list(extract_clips(source, VideoConfig(clip=SHORT)))
    assert [(result.shot, result.start_s) for result in results] == [(0, 10), (1, 13)]


def test_clips_failed_window_is_rejected_with_its_start_time():
    images = still(0, 48)
    images[16:32] = 127 + np.arange(16)[:, None, None, None] % 2  # no texture: SIFT has no keypoints
    for config, refused in (
        (VideoConfig(clip=SHORT), ("screen", "black")),
        (
            VideoConfig(clip=SHORT, prescreen=UNSCREENED, stabilize=StabilizeConfig(preset="paper")),
            ("stabilize", "too_few_matches"),
        ),
    ):
        results = list(extract_clips(timed(images), config))
        rejects = [result for result in results if isinstance(result, Reject)]
        assert [(r.stage, r.reason) for r in rejects] == [refused]
        assert rejects[0].start_s == pytest.approx(10.64)


def test_clips_of_a_failing_source_are_followed_by_a_reject():
    def failing() -> Iterator[Frame]:
        yield from timed(still(0, 36))
        raise VideoError("decode", "corrupt", "the disk was full")

    *clips, last = extract_clips(failing(), VideoConfig(clip=SHORT))
    assert [type(result) for result in clips] == [Clip] * 2
    assert last == Reject(start_s=None, stage="decode", reason="corrupt", detail="the disk was full")


def test_clips_stop_at_the_cap_and_close_the_source():
    consumed, closed = [], []

    def endless() -> Iterator[Frame]:
        try:
            for frame in timed(np.tile(still(0, 1), (2000, 1, 1, 1))):
                consumed.append(frame.pts_s)
                yield frame
        finally:
            closed.append(True)

    config = VideoConfig(clip=ClipSpec(num_frames=16, max_per_video=2), prescreen=UNSCREENED)
    results = list(extract_clips(endless(), config))
    assert len(results) == 2
    assert len(consumed) < 60
    assert closed


@pytest.mark.parametrize(
    ("images", "fps", "reason"),
    [(still(0, 10), 25, "too_short"), (still(0, 40)[:, :40], 25, "too_small"), (still(0, 60), 10, "low_frame_rate")],
)
def test_clips_unusable_video_gives_one_reject(images, fps, reason):
    config = VideoConfig(clip=ClipSpec(num_frames=32, stride=32))
    assert [result.reason for result in extract_clips(timed(images, fps), config)] == [reason]


def test_clips_windows_with_a_low_frame_rate_are_rejected():
    steady = np.arange(32) / 25
    slow = steady[-1] + 0.18 * np.arange(1, 12)  # 5.6 per second, each gap below the maximum
    source = [Frame(pts_s, image) for pts_s, image in zip([*steady, *slow], still(0, 43), strict=True)]
    results = list(extract_clips(source, VideoConfig(clip=SHORT)))
    assert [type(result) for result in results[:2]] == [Clip] * 2
    assert {result.reason for result in results[2:]} == {"low_frame_rate"}


def test_clips_of_real_shaky_video_are_steadier_than_the_video(shared):
    path = shared / "data/shaky/adialbum1/in_vid.mp4"
    clip = ClipSpec(max_per_video=6)
    plain = VideoConfig(clip=clip, stabilize=StabilizeConfig(preset="off"))
    before = list(extract_clips(frames(path, DecodeConfig()), plain))
    after = list(extract_clips(frames(path, DecodeConfig()), VideoConfig(clip=clip)))
    assert len(before) == len(after) == 6
    shaky, steady = (np.array([clip.evidence.motion for clip in clips]) for clips in (before, after))
    assert (steady < shaky).all()
    assert steady.mean() < 0.3 * shaky.mean()


def test_clips_twice_gives_the_same_bytes():
    source = timed(film([make_texture(3)] * 40, shaky_cameras(3, 40, shift_px=2.0)))
    first, second = (
        [
            result.frames.tobytes()
            for result in extract_clips(source, VideoConfig(clip=SHORT))
            if isinstance(result, Clip)
        ]
        for _ in range(2)
    )
    assert first == second
    assert len(first) == 2


def test_clips_have_every_score_of_the_gates():
    source = timed(film([make_texture(3)] * 16, shaky_cameras(3, 16, shift_px=2.0)))
    (clip,) = extract_clips(source, VideoConfig(clip=SHORT))
    evidence = clip.evidence
    assert evidence.contrast > 10
    assert evidence.motion > 0
    assert evidence.num_matches >= 8
    assert len(evidence.fingerprint) == 32
    assert len(evidence.motion_signs) == 64
    assert evidence.letterbox == 0


def test_clips_of_a_letterboxed_film_show_no_bars():
    images = still(0, 16)
    images[:, :20] = images[:, -20:] = 0
    (clip,) = extract_clips(timed(images), VideoConfig(clip=SHORT))
    assert clip.evidence.letterbox == pytest.approx(40 / images.shape[1], abs=0.02)
    assert clip.frames[:, :3].mean() > 40


def test_clips_repeats_of_a_slower_source_are_no_frozen_frames():
    slow = timed(still(0, 40), fps=15.0)
    results = list(extract_clips(slow, VideoConfig(clip=SHORT)))
    assert results
    assert all(isinstance(result, Clip) and result.evidence.frozen_fraction == 0 for result in results)


def test_clips_that_fail_a_gate_are_not_stabilized_with_keep_failed():
    source = timed(film([make_texture(3)] * 16, shaky_cameras(3, 16, shift_px=2.0)))
    strict = FilterConfig(max_residual_px=1e-6)
    keep = StabilizeConfig(keep_failed=True)
    (unstabilized,) = extract_clips(source, VideoConfig(clip=SHORT, stabilize=keep, filters=strict))
    assert not unstabilized.evidence.stabilized
    (scored,) = extract_clips(source, VideoConfig(clip=SHORT, filters=strict))
    assert scored.evidence.stabilized  # bounds are applied when the dataset is packed
