"""Files become upright, reduced, correctly timed frames, or a BadVideo that says why not."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture, shaky_cameras

from vgan.config import DecodeConfig
from vgan.errors import BadVideo
from vgan.video.decode import Frame, frames, reduced_size

BACKENDS = ["pyav", "decord"]


def decode(path: str | Path, **settings: object) -> list[Frame]:
    return list(frames(path, DecodeConfig(**settings)))


def reason(path: str | Path, **settings: object) -> str:
    with pytest.raises(BadVideo) as caught:
        decode(path, **settings)
    assert caught.value.stage == "decode"
    return caught.value.reason


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_gives_every_frame_at_its_time_and_reduced(make_video, backend):
    decoded = decode(make_video(num_frames=30), backend=backend, size=64)
    assert [frame.pts_s for frame in decoded] == pytest.approx(np.arange(30) / 25, abs=1e-3)
    assert {(frame.image.shape, frame.image.dtype) for frame in decoded} == {((64, 85, 3), np.dtype(np.uint8))}


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_shows_the_picture_that_was_written(make_video, backend):
    written = film([make_texture(0)] * 10, [camera((4 * t, 0)) for t in range(10)])
    decoded = decode(make_video(written), backend=backend)
    for frame, original in zip(decoded, written, strict=True):
        assert np.abs(frame.image.astype(int) - original).mean() < 12  # 4:2:0 and H.264 at crf 18; neighbours: 25


def test_decode_never_enlarges():
    assert reduced_size(1080, 1920, 128) == (128, 228)
    assert reduced_size(1920, 1080, 128) == (228, 128)
    assert reduced_size(100, 60, 128) == (100, 60)
    assert reduced_size(1, 5000, 128) == (1, 5000)


def test_decode_variable_rate_keeps_the_files_own_times(tmp_path):
    times_ms = [0, 40, 70, 150, 151, 400, 900]
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for time_ms in times_ms:
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")
            picture.pts = time_ms
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert [frame.pts_s for frame in decode(path)] == pytest.approx(np.array(times_ms) / 1000)


@pytest.mark.parametrize("name", ["-i.mp4", "a bé.mp4", "a:b.mp4", "http:x.mp4", "%03d.mp4", "x\udcff.mp4"])
def test_decode_takes_any_file_name_for_a_file(make_video, monkeypatch, name):
    path = make_video(name="plain.mp4", num_frames=3)
    path.rename(path.with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(decode(name)) == 3


def test_decode_unusable_files_name_their_reason(tmp_path, make_video):
    whole = make_video(film([make_texture(0)] * 60, shaky_cameras(0, 60))).read_bytes()
    empty, noise, cut = tmp_path / "empty.mp4", tmp_path / "noise.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    noise.write_bytes(np.random.default_rng(0).bytes(20_000))
    cut.write_bytes(whole[: len(whole) // 2])
    assert reason(empty) == "cannot_open"
    assert reason(noise) == "cannot_open"
    assert reason(tmp_path / "absent.mp4") == "cannot_open"
    assert reason(empty, backend="decord") == "cannot_open"
    good = []
    with pytest.raises(BadVideo) as caught:
        good.extend(frames(cut, DecodeConfig()))
    assert caught.value.reason == "corrupt"
    assert 10 < len(good) < 60


def test_decode_sound_only_file_has_no_video_stream(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert reason(path) == "no_video_stream"


@pytest.mark.parametrize("name", ["decord/video_90.mov", "decord/video_180.mov", "torchcodec/nasa_13013_rotated.mp4"])
def test_decode_turns_pictures_upright_as_decord_does(shared, name):
    path = shared / "data/odd" / name
    ours, theirs = (decode(path, backend=backend, size=2000)[0].image for backend in BACKENDS)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 3
    small, their_small = (decode(path, backend=backend)[0].image for backend in BACKENDS)
    assert small.shape == their_small.shape
    assert np.abs(small.astype(int) - their_small).mean() < 6


def test_decode_avi_with_b_frames_keeps_its_even_rate(shared):
    path = shared / "data/odd/opencv-doc/Megamind.avi"  # PyAV's own times run 1 2 3 5 4 6 8 7 here
    times_s = [frame.pts_s for frame in decode(path)]
    assert len(times_s) == 269  # of 270: the last one leaves the decoder without a usable time
    assert np.diff(times_s) == pytest.approx(125 / 2997, abs=1e-6)
