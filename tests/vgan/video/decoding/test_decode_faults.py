"""Files with faults give every frame that is right, and say what was lost or changed."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from encoded_videos import write_video
from moving_pictures import make_texture

from vgan.errors import VideoError
from vgan.records import Clip, Reject
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, DecodeConfig, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import Frame, Treatment, frames
from vgan.video.decoding.isolated_decoder import Decoder
from vgan.video.decoding.layout import nearest_orientation

PYAV = DecodeConfig(backend="pyav")
UNSTABILIZED = VideoConfig(clip=ClipSpec(num_frames=16, stride=16), stabilize=StabilizeConfig(preset="off"))


def decode(path: Path, start_s: float = 0.0, end_s: float = np.inf) -> tuple[list[Frame], list[Reject], Treatment]:
    """Return the frames, the damages and the treatment of a segment."""
    findings: list[Reject | Treatment] = []
    decoded = list(frames(path, PYAV, start_s, end_s, on_finding=findings.append))
    (treatment,) = [finding for finding in findings if isinstance(finding, Treatment)]
    return decoded, [finding for finding in findings if isinstance(finding, Reject)], treatment


def pan(num_frames: int, seed: int = 0, height: int = 128, width: int = 160) -> list[np.ndarray]:
    """Return pictures of a camera that moves to and fro."""
    texture = make_texture(seed, 200 + max(height, width))
    return [
        np.ascontiguousarray(texture[40 + y : 40 + y + height, 40 + x : 40 + x + width])
        for t in range(num_frames)
        for x, y in [(round(30 * np.sin(t / 20)), round(20 * np.cos(t / 17)))]
    ]


# ---- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Frame], list[Reject]]:
    """Two minutes of H.264, intact and with 2,048 zero bytes at 40 %, and the latter's frames and damages."""
    folder = tmp_path_factory.mktemp("damage")
    options = {"g": "12", "bf": "2", "preset": "ultrafast"}
    intact = write_video(folder / "intact.mp4", pan(3000), "libx264", "yuv420p", options)
    data = bytearray(intact.read_bytes())
    position = len(data) * 2 // 5
    data[position : position + 2048] = bytes(2048)
    (folder / "damaged.mp4").write_bytes(data)
    return intact, folder / "damaged.mp4", *decode(folder / "damaged.mp4")[:2]


def test_damage_in_the_middle_costs_its_group_of_pictures_alone(damaged):
    intact, _, decoded, damages = damaged
    original = {frame.pts_s: frame.image for frame in decode(intact)[0]}
    assert 2976 <= len(decoded) < 3000  # at most two groups of 12
    assert all(np.array_equal(frame.image, original[frame.pts_s]) for frame in decoded)
    ((damage,), num_lost) = damages, 3000 - len(decoded)
    assert (damage.stage, damage.reason) == ("decode", "damaged")
    assert damage.start_s == pytest.approx(48, abs=1.5)
    assert damage.detail.startswith(f"{num_lost} frames lost before the key frame at ")


def test_damage_is_reported_by_the_segment_in_which_it_begins(damaged):
    _, broken, decoded, _ = damaged
    parts = [decode(broken, *bounds) for bounds in ((40, 45), (45, 52), (52, 55))]
    expected = [frame.pts_s for frame in decoded if 40 <= frame.pts_s < 55]
    assert [frame.pts_s for part, _, _ in parts for frame in part] == expected
    assert [len(damages) for _, damages, _ in parts] == [0, 1, 0]


def test_damage_passes_the_isolated_decoder_and_clips_on_both_sides_are_kept(damaged):
    with Decoder(DecodeConfig()) as decoder:
        items = list(extract_clips(decoder.frames(damaged[1], 40, 56), UNSTABILIZED))
        (damage,) = decoder.damages
    starts_s = [item.start_s for item in items if isinstance(item, Clip)]
    assert min(starts_s) < damage.start_s - 5
    assert max(starts_s) > damage.start_s + 5
    assert len(starts_s) >= 20


def test_damage_to_the_end_is_corrupt_and_no_later_picture_is_shown(tmp_path):
    path = write_video(tmp_path / "a.mp4", pan(100), "libx264", "yuv420p", {"g": "250", "bf": "0"})
    original = {frame.pts_s: frame.image for frame in decode(path)[0]}
    data = bytearray(path.read_bytes())
    position = len(data) * 2 // 5
    data[position : position + 2048] = bytes(2048)
    path.write_bytes(data)
    decoded = []
    with pytest.raises(VideoError) as caught:
        decoded.extend(frames(path, PYAV))
    assert (caught.value.reason, "frames lost to the end" in caught.value.detail) == ("corrupt", True)
    assert 20 < len(decoded) < 60
    assert all(np.array_equal(frame.image, original[frame.pts_s]) for frame in decoded)


# ---- times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_times_that_restart_give_two_runs(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", pan(150), "mpeg2video", "yuv420p", {"g": "25", "qscale": "3"})
    once = decode(path)[0]
    path.write_bytes(path.read_bytes() * 2)
    twice, damages, _ = decode(path)
    assert [frame.run for frame in twice] == [0] * 150 + [1] * 150
    assert damages == []
    assert (np.diff([frame.pts_s for frame in twice]) > 0).all()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(twice, once * 2, strict=True))
    assert {item.shot for item in extract_clips(iter(twice), UNSTABILIZED) if isinstance(item, Clip)} == {0, 1}
    parts = [decode(path, *bounds)[0] for bounds in ((0, 4), (4, 9), (9, np.inf))]
    assert [frame.pts_s for part in parts for frame in part] == [frame.pts_s for frame in twice]
    with Decoder(DecodeConfig()) as decoder:
        assert [frame.run for frame in decoder.frames(path)] == [0] * 150 + [1] * 150


def test_slow_start_rejects_its_own_time_alone():
    pictures = pan(240)
    times_s = [*np.arange(40) / 10, *(4 + np.arange(200) / 30)]
    source = (Frame(float(pts_s), picture) for pts_s, picture in zip(times_s, pictures, strict=True))
    items = list(extract_clips(source, UNSTABILIZED))
    clips = [item for item in items if isinstance(item, Clip)]
    (reject,) = [item for item in items if isinstance(item, Reject) and item.reason == "low_frame_rate"]
    assert (reject.start_s, reject.detail[:38]) == (0.0, "10.00 frames per second for 4.00 s; at")
    assert clips[0].start_s == pytest.approx(4.0, abs=0.05)
    assert len(clips) == 10


@pytest.mark.parametrize("num_frames", [60, 700])
def test_slow_video_is_rejected_as_a_whole_without_decoding_all_of_it(num_frames):
    read: list[float] = []

    def source() -> Iterator[Frame]:
        for t in range(num_frames):
            read.append(t / 10)
            yield Frame(t / 10, np.zeros((64, 64, 3), np.uint8))

    (reject,) = extract_clips(source(), UNSTABILIZED)
    assert (reject.start_s, reject.reason) == (None, "low_frame_rate")
    assert len(read) <= 603


@pytest.mark.parametrize(("suffix", "encoder"), [(".h264", "libx264"), (".hevc", "libx265")])
def test_streams_without_times_get_the_streams_rate(tmp_path, suffix, encoder):
    options = {"x265-params": "log-level=none", "preset": "ultrafast"}
    path = write_video(tmp_path / f"a{suffix}", pan(60), encoder, "yuv420p", options, rate=30)
    decoded, _, treatment = decode(path)
    assert [frame.pts_s for frame in decoded] == pytest.approx(np.arange(60) / 30)
    assert treatment.notes == "no timestamps: 30 frames per second by the stream's header"
    assert [frame.pts_s for frame in decode(path, 0.5, 1.0)[0]] == pytest.approx(np.arange(15, 30) / 30)


# ---- shape -------------------------------------------------------------------------------------------------------


def test_change_of_size_starts_a_shot_of_its_own_layout(tmp_path):
    small = pan(20, 0, 480, 640)
    large = [cv2.resize(picture, (1280, 720)) for picture in pan(20, 1, 360, 640)]
    parts = [
        write_video(tmp_path / f"{i}.ts", part, "libx264", "yuv420p", {"preset": "ultrafast"}).read_bytes()
        for i, part in enumerate((small, large))
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    decoded = decode(path)[0]
    shapes = [frame.image.shape for frame in decoded]
    assert shapes == [(128, 171, 3)] * 20 + [(128, 228, 3)] * 20  # 4:3 and 16:9
    for frame, written in zip(decoded, [*small, *large], strict=True):
        expected = cv2.resize(written, frame.image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(frame.image.astype(int) - expected).mean() < 12
    clips = [item for item in extract_clips(iter(decoded), UNSTABILIZED) if isinstance(item, Clip)]
    assert [clip.shot for clip in clips] == [0, 1]


UPRIGHT, TURNED = (False, False, False), (True, True, False)
MATRICES = {  # name -> (matrix of 16.16 numbers, steps, degrees off)
    "exact": ([[0, -65536], [65536, 0]], TURNED, 0.0),
    "off by one unit": ([[0, -65535], [65535, 0]], TURNED, 0.0),
    "off by 0.01 rad": ([[655, -65533], [65533, 655]], TURNED, 0.573),
    "scaled by 2": ([[0, -131072], [131072, 0]], TURNED, 0.0),
    "mirrored, scaled by half": ([[-32768, 0], [0, 32768]], (False, False, True), 0.0),
    "zero": ([[0, 0], [0, 0]], UPRIGHT, 0.0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix_is_taken_for_the_nearest_right_angle(name):
    matrix, steps, degrees = MATRICES[name]
    nearest, error_deg = nearest_orientation(np.array(matrix, float))
    assert (nearest, error_deg) == (steps, pytest.approx(degrees, abs=0.01))


@pytest.mark.parametrize(("factor", "angle", "notes"), [(65535 / 65536, 0, 0), (1, 0.01, 1), (2, 0, 0)])
def test_display_matrix_of_a_file_that_is_not_exact_turns_the_picture(tmp_path, factor, angle, notes):
    picture = pan(1)[0][:96, :144]
    turned = write_video(tmp_path / "a.mp4", [picture] * 3, "libx264", "yuv420p", {}, rotation=(90.0, False, False))
    exact = decode(turned)[0][0].image
    data = turned.read_bytes()
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    a, b, u, c, d, v = struct.unpack(">6i", data[start : start + 24])
    assert sorted(map(abs, (a, b, c, d))) == [0, 0, 65536, 65536]
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    a, b, c, d = (
        round(value) for value in (cos * a - sin * c, cos * b - sin * d, sin * a + cos * c, sin * b + cos * d)
    )
    turned.write_bytes(data[:start] + struct.pack(">6i", a, b, u, c, d, v) + data[start + 24 :])
    decoded, _, treatment = decode(turned)
    assert np.array_equal(decoded[0].image, exact)
    assert ("display matrix 0.6 degrees off" in treatment.notes) == bool(notes)


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("name", ["ffconcat", "m3u8"])
def test_playlist_named_as_a_video_opens_no_other_file(make_video, tmp_path, name, backend):
    sibling = make_video(name="sibling.mp4", num_frames=5)
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile {sibling.name}\n",
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{sibling.name}\n#EXT-X-ENDLIST\n",
    }
    path = tmp_path / "video.mp4"
    path.write_text(texts[name])
    with Decoder(DecodeConfig(backend=backend)) as decoder:
        with pytest.raises(VideoError) as caught:
            list(decoder.frames(path))
        assert caught.value.reason == "cannot_open"
        with pytest.raises(VideoError, match="cannot_open"):
            decoder.probe(path)


# ---- fields ------------------------------------------------------------------------------------------------------


def shifted(steps_px: np.ndarray) -> list[np.ndarray]:
    """Return pictures (240, 320, 3) of a scene that moves sideways."""
    scene = cv2.resize(make_texture(0, 400), (1200, 1200), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(scene[300:540, 100 + round(x) : 420 + round(x)]) for x in steps_px]


def woven(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return the picture of two fields."""
    picture = top.copy()
    picture[1::2] = bottom[1::2]
    return picture


def telecined(film_frames: list[np.ndarray]) -> list[np.ndarray]:
    """Return five video frames for every four film frames (3:2 pulldown, top field first)."""
    groups = [film_frames[i : i + 4] for i in range(0, len(film_frames) - 3, 4)]
    return [picture for a, b, c, d in groups for picture in (a, b, woven(b, c), woven(c, d), d)]


FIELD_ENCODERS = {
    "mpeg2": ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "b": "20M", "g": "15"}),
    "h264": ("a.mp4", "libx264", {"x264-params": "interlaced=1", "crf": "12"}),
    "h264 encoded as progressive": ("b.mp4", "libx264", {"crf": "12"}),
}


def errors_px(decoded: list[Frame], pictures: list[np.ndarray]) -> np.ndarray:
    """Return the mean absolute errors of decoded frames, each to the nearest of `pictures` two before to two after."""
    errors = []
    for t, frame in enumerate(decoded):
        size = frame.image.shape[1::-1]
        near = pictures[max(0, t - 2) : t + 3]
        expected = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(int) for picture in near]
        errors.append(min(np.abs(frame.image - picture).mean() for picture in expected))
    return np.array(errors)


@pytest.mark.parametrize("kind", FIELD_ENCODERS)
def test_interlaced_video_is_deinterlaced_at_its_own_times(tmp_path, kind):
    name, encoder, options = FIELD_ENCODERS[kind]
    moments = shifted(np.arange(120) * 3.0)
    pictures = [woven(moments[2 * t], moments[2 * t + 1]) for t in range(60)]
    path = write_video(tmp_path / name, pictures, encoder, "yuv420p", options)
    native = list(frames(path, PYAV, native=True))
    assert decode(path)[2] == Treatment(deinterlaced=True)
    assert len(native) == 60
    assert np.diff([frame.pts_s for frame in native]) == pytest.approx(0.04, abs=1e-3)
    second_field = [(f.image, p, moments[2 * t]) for t, (f, p) in enumerate(zip(native, pictures, strict=True))]
    errors = [np.abs(image[1::2].astype(int) - moment[1::2]).mean() for image, _, moment in second_field]
    woven_errors = [np.abs(picture[1::2].astype(int) - moment[1::2]).mean() for _, picture, moment in second_field]
    assert np.median(errors) < 0.6 * np.median(woven_errors)  # now of the first field's moment
    parts = [decode(path, *bounds)[0] for bounds in ((0, 1.2), (1.2, np.inf))]
    assert [frame.pts_s for part in parts for frame in part] == [frame.pts_s for frame in native]


@pytest.mark.parametrize("kind", FIELD_ENCODERS)
def test_telecined_film_gets_its_own_frames_back(tmp_path, kind):
    name, encoder, options = FIELD_ENCODERS[kind]
    film_frames = shifted(np.arange(80) * 6.0)
    path = write_video(tmp_path / name, telecined(film_frames), encoder, "yuv420p", options, rate=30)
    decoded, _, treatment = decode(path)
    assert treatment == Treatment(cadence="3:2")
    assert len(decoded) == 80
    assert np.diff([frame.pts_s for frame in decoded]) == pytest.approx(1 / 24, abs=1e-6)
    assert np.median(errors_px(decoded, film_frames)) < 6
    changes = [
        np.abs(b.image.astype(int) - a.image).mean() for a, b in itertools.pairwise(decoded[2:])
    ]  # FFmpeg's filter repeats the very first
    assert min(changes) > 0.5 * np.median(changes)  # no frame is repeated
    parts = [decode(path, *bounds)[0] for bounds in ((0, 1.5), (1.5, np.inf))]
    assert [frame.pts_s for part in parts for frame in part] == [frame.pts_s for frame in decoded]


def test_progressive_video_flagged_as_interlaced_stays_as_it_is(tmp_path):
    name, encoder, options = FIELD_ENCODERS["mpeg2"]
    path = write_video(tmp_path / name, shifted(np.arange(40) * 4.0), encoder, "yuv420p", options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert decode(path)[2] == Treatment()


def test_progressive_real_videos_are_not_taken_for_interlaced(shared):
    for path in sorted((shared / "data/generic").rglob("*.mp4")):
        assert decode(path, 0.0, 1e-3)[2] == Treatment(), path.name
