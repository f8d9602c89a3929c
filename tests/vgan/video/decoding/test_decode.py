"""Files are decoded into upright, downscaled, correctly timed frames, or VideoError with a reason."""

from __future__ import annotations

import hashlib
import itertools
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from encoded_videos import KINDS, write_kind, write_video
from moving_pictures import camera, film, make_texture, shaky_cameras
from PIL import Image, ImageOps

from vgan.errors import VideoError
from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import Frame, frames, probe_video
from vgan.video.decoding.hdr import BT2020_LUMINANCE, GAMMA, TO_BT709, WHITE, light_to_pq
from vgan.video.decoding.layout import reduced_size, square_pixels

BACKENDS = ["pyav", "decord"]
AV1 = "libsvtav1", {"crf": "1", "preset": "12"}  # for 10 bits: libx265 sometimes writes headers that muxers reject


def decode(path: str | Path, **settings: object) -> list[Frame]:
    return list(frames(path, DecodeConfig(**settings)))


def reason(path: str | Path, **settings: object) -> str:
    with pytest.raises(VideoError) as caught:
        decode(path, **settings)
    assert caught.value.stage == "decode"
    return caught.value.reason


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_gives_every_frame_at_its_time_and_reduced(make_video, backend):
    decoded = decode(make_video(num_frames=30), backend=backend, short_side=64)
    assert [frame.pts_s for frame in decoded] == pytest.approx(np.arange(30) / 25, abs=1e-3)
    assert {(frame.image.shape, frame.image.dtype) for frame in decoded} == {((64, 85, 3), np.dtype(np.uint8))}


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_shows_the_picture_that_was_written(make_video, backend):
    written = film([make_texture(0)] * 10, [camera((4 * t, 0)) for t in range(10)])
    decoded = decode(make_video(written), backend=backend)
    for frame, original in zip(decoded, written, strict=True):
        assert np.abs(frame.image.astype(int) - original).mean() < 12  # 4:2:0 and H.264 at crf 18; adjacent frames: 25


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
    valid = make_video(film([make_texture(0)] * 60, shaky_cameras(0, 60))).read_bytes()
    empty, noise, cut = tmp_path / "empty.mp4", tmp_path / "noise.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    noise.write_bytes(np.random.default_rng(0).bytes(20_000))
    cut.write_bytes(valid[: len(valid) // 2])
    assert reason(empty) == "cannot_open"
    assert reason(noise) == "cannot_open"
    assert reason(tmp_path / "absent.mp4") == "cannot_open"
    assert reason(empty, backend="decord") == "cannot_open"
    good = []
    with pytest.raises(VideoError) as caught:
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
    ours, theirs = (decode(path, backend=backend, short_side=2000)[0].image for backend in BACKENDS)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 3
    small, their_small = (decode(path, backend=backend)[0].image for backend in BACKENDS)
    assert small.shape == their_small.shape
    assert np.abs(small.astype(int) - their_small).mean() < 6


def test_decode_avi_with_b_frames_keeps_its_even_rate(shared):
    path = (
        shared / "data/odd/opencv-doc/Megamind.avi"
    )  # PyAV returns the times 1 2 3 5 4 6 8 7 here, and none for the last frame
    times_s = [frame.pts_s for frame in decode(path)]
    assert len(times_s) == 270
    assert np.diff(times_s) == pytest.approx(125 / 2997, abs=1e-6)


# Mean error, 0..255, of 4:2:0 (5) and the encoder's quantizer; adjacent frames differ by 33.
@pytest.mark.parametrize("kind", KINDS)
def test_decode_gives_the_frames_that_were_written_in_any_codec(tmp_path, kind):
    written = film([make_texture(0)] * 50, [camera((3 * t, 0)) for t in range(50)])
    decoded = decode(write_kind(tmp_path, kind, written))
    times_s = np.array([frame.pts_s for frame in decoded])
    assert times_s - times_s[0] == pytest.approx(np.arange(50) / 25, abs=2e-3)  # milliseconds in ASF, FLV and Matroska
    errors = [
        np.abs(frame.image.astype(int) - original).mean() for frame, original in zip(decoded, written, strict=True)
    ]
    assert max(errors) < 20


# ---- shape -------------------------------------------------------------------------------------------------------


def test_square_pixels_never_enlarges():
    assert square_pixels(576, 720, Fraction(16, 15)) == (540, 720)
    assert square_pixels(480, 720, Fraction(8, 9)) == (480, 640)
    assert square_pixels(480, 720, None) == square_pixels(480, 720, Fraction(100, 1)) == (480, 720)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pixel_aspect", "shape"), [(Fraction(2, 1), (64, 160)), (Fraction(1, 2), (128, 80))])
def test_decode_shows_square_pixels(tmp_path, backend, pixel_aspect, shape):
    pictures = [make_texture(0)[:128, :160]] * 3
    path = write_video(tmp_path / "a.mp4", pictures, "libx264", "yuv420p", pixel_aspect=pixel_aspect)
    assert {frame.image.shape[:2] for frame in decode(path, backend=backend)} == {shape}
    assert (probe_video(path).height, probe_video(path).width) == shape


TURNS = {  # FFmpeg's -display_rotation, -hflip and -vflip -> transformation from stored to displayed picture
    (90.0, False, False): lambda image: np.rot90(image, 1),
    (180.0, False, False): lambda image: np.rot90(image, 2),
    (270.0, False, False): lambda image: np.rot90(image, 3),
    (0.0, True, False): lambda image: image[:, ::-1],
    (0.0, False, True): lambda image: image[::-1],
    (90.0, True, False): lambda image: np.rot90(image, 1)[:, ::-1],  # FFmpeg flips after the rotation
}


@pytest.mark.parametrize("turn", TURNS)
def test_decode_follows_the_display_matrix(tmp_path, turn):
    picture = make_texture(1)[:96, :144]
    path = write_video(tmp_path / "a.mp4", [picture] * 3, "libx264", "yuv420p", {"crf": "10"}, rotation=turn)
    displayed = decode(path)[0].image
    expected = TURNS[turn](picture)
    assert displayed.shape == expected.shape
    assert np.abs(displayed.astype(int) - expected).mean() < 12
    assert (probe_video(path).height, probe_video(path).width) == expected.shape[:2]


def test_decode_change_of_size_in_mid_stream_starts_a_run_of_its_own_shape(tmp_path):
    parts = []
    for index, (height, width) in enumerate([(96, 128), (144, 176)]):
        pictures = [make_texture(index)[:height, :width]] * 10
        part = write_video(tmp_path / f"{index}.ts", pictures, "mpeg2video", "yuv420p")
        parts.append(part.read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    decoded = list(frames(tmp_path / "both.ts", DecodeConfig()))
    shapes = [(frame.run, frame.image.shape) for frame in decoded]
    assert sorted(set(shapes)) == [(0, (96, 128, 3)), (1, (128, 156, 3))]
    assert len(decoded) >= 19  # FFmpeg's MPEG-2 decoder drops the last picture of the first size


@pytest.mark.parametrize(
    "name", ["testsrc2_odd_height_and_width_444.mp4", "testsrc2_odd_height_and_width_vp9_10bit.mp4"]
)
def test_decode_odd_sizes_native(shared, name):
    decoded = list(frames(shared / "data/odd/torchcodec" / name, DecodeConfig(), native=True))
    assert {frame.image.shape for frame in decoded} == {(241, 321, 3)}


# ---- color -------------------------------------------------------------------------------------------------------

LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # red, blue; by FFmpeg's colorspace number


def yuv(color: tuple[int, int, int], colorspace: int, full_range: bool, bits: int) -> tuple[int, int, int]:
    """Convert an RGB color 0..255 to integer Y, Cb, Cr by the formulas of ITU-R BT.601, 709 and 2020."""
    red, green, blue = (value / 255 for value in color)
    weight_red, weight_blue = LUMA_WEIGHTS[colorspace]
    y = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
    cb, cr = (blue - y) / (2 - 2 * weight_blue), (red - y) / (2 - 2 * weight_red)
    unit = 2 ** (bits - 8)
    if full_range:
        top = 2**bits - 1
        return round(y * top), min(top, round(cb * top + 128 * unit)), min(top, round(cr * top + 128 * unit))
    return round((16 + 219 * y) * unit), round((128 + 224 * cb) * unit), round((128 + 224 * cr) * unit)


def flat_frame(levels: tuple[int, int, int], height: int, width: int, bits: int) -> av.VideoFrame:
    """Create a frame of one color, 4:2:0."""
    dtype = np.uint8 if bits == 8 else np.uint16
    frame = av.VideoFrame(width, height, "yuv420p" if bits == 8 else "yuv420p10le")
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(np.full(plane.buffer_size // dtype().itemsize, level, dtype).tobytes())
    return frame


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 200, 40), (30, 60, 250), (255, 255, 255), (128, 128, 128)])
@pytest.mark.parametrize(
    ("tagged", "true_matrix", "full_range", "bits", "height"),
    [
        (1, 1, False, 8, 64),
        (1, 1, True, 8, 64),
        (5, 5, False, 8, 720),
        (5, 5, True, 8, 64),
        (2, 5, False, 8, 64),  # not specified: SD is BT.601
        (2, 1, False, 8, 720),  # and HD is BT.709
        (9, 9, False, 10, 64),
        (9, 9, True, 10, 64),
    ],
)
def test_decode_color_follows_matrix_range_and_depth(tmp_path, color, tagged, true_matrix, full_range, bits, height):
    flat = flat_frame(yuv(color, true_matrix, full_range, bits), height, 64, bits)
    encoder, options = ("libx264", {"crf": "1", "preset": "ultrafast"}) if bits == 8 else AV1
    path = write_video(
        tmp_path / "a.mp4",
        [flat],
        encoder,
        flat.format.name,
        options,
        colorspace=tagged,
        color_range=2 if full_range else 1,
    )
    (frame,) = decode(path)
    assert np.abs(frame.image.reshape(-1, 3).astype(int) - color).max() <= 3


def light_to_hlg(light: np.ndarray) -> np.ndarray:
    """Convert luminance (H, W, 3) of the nominal HLG display, in cd/m2, to HLG codes: BT.2100, table 5."""
    luminance = (light @ BT2020_LUMINANCE)[..., None] / 1000
    scene = light / 1000 / np.maximum(luminance, 1e-9) ** (0.2 / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene, 1) - 0.28466892) + 0.55991073
    )


@pytest.mark.parametrize(("curve", "to_code"), [(16, light_to_pq), (18, light_to_hlg)], ids=["pq", "hlg"])
def test_decode_hdr_equals_the_sdr_picture_it_was_made_from(tmp_path, curve, to_code):
    sdr = np.zeros((96, 160, 3), np.uint8)  # at most 90 cd/m2, below the roll-off
    for i, color in enumerate([(160, 160, 160), (90, 90, 90), (40, 40, 40), (170, 60, 60), (60, 150, 70)]):
        sdr[:, 32 * i : 32 * (i + 1)] = color
    code = to_code((sdr / 255) ** GAMMA * WHITE @ np.linalg.inv(TO_BT709).T)
    picture = av.VideoFrame.from_ndarray(np.rint(code * 65535).astype(np.uint16), format="rgb48le")
    frame = picture.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
    tags = {"color_trc": curve, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    (decoded,) = decode(write_video(tmp_path / "hdr.mp4", [frame], AV1[0], "yuv420p10le", AV1[1], **tags))
    inside = np.arange(160) % 32
    inner = (inside > 8) & (inside < 24)  # not at edges, where color is blurred
    assert np.abs(decoded.image.astype(int) - sdr)[:, inner].max() <= 6


def test_decode_hdr_of_10_and_12_bits(shared):
    for name in ("bt2020_10bit", "testsrc2_12bit_hdr"):
        image = decode(shared / f"data/odd/torchcodec/{name}.mp4")[0].image
        assert image.dtype == np.uint8
        bars = image[image.shape[0] // 3, image.shape[1] // 12 :: image.shape[1] // 6]  # red, green, yellow, blue, ...
        assert (bars[[0, 1, 3]].argmax(axis=1) == [0, 1, 2]).all()
        assert bars[[0, 1, 3]].max(axis=1).min() > 250
        assert np.median(bars[[0, 1, 3]], axis=1).max() < 50


# ---- streams and metadata ----------------------------------------------------------------------------------------


def test_decode_edit_list_omits_frames(shared):
    path = (
        shared / "data/odd/torchcodec/discard_first_keyframe.mp4"
    )  # 30 pictures, the first 5 omitted by its edit list
    assert len(decode(path, backend="pyav")) == 25


def test_decode_cover_picture_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(make_texture(0)[:64, :64], format="rgb24").reformat(format="yuvj420p")
        picture.pts = 0
        for packet in [*cover.encode(picture), *cover.encode()]:
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    assert reason(path) == "no_video_stream"


def test_probe_returns_the_metadata_of_the_file(make_video):
    metadata = probe_video(make_video(num_frames=50))
    assert (metadata.width, metadata.height, metadata.codec, metadata.rotation) == (170, 128, "h264", 0)
    assert "mp4" in metadata.container.split(",")
    assert metadata.fps == pytest.approx(25)
    assert metadata.duration_s == pytest.approx(2.0)


def test_probe_unusable_file_names_its_reason(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoError) as caught:
        probe_video(tmp_path / "empty.mp4")
    assert caught.value.reason == "cannot_open"


# ---- segments ----------------------------------------------------------------------------------------------------


def marked(path: Path, start_s: float = 0.0, end_s: float = math.inf, skipped: list[float] | None = None) -> list:
    """List (pts_s, digest of the picture) of each frame, and the reason last if decoding fails."""
    on_skip = [].append if skipped is None else skipped.append
    marks: list = []
    try:
        for frame in frames(path, DecodeConfig(backend="pyav"), start_s, end_s, on_skip=on_skip):
            marks.append((frame.pts_s, hashlib.sha1(frame.image.tobytes()).hexdigest()))
    except VideoError as error:
        marks.append(error.reason)
    return marks


def union_of_segments(path: Path, length_s: float, skipped: list[float] | None = None) -> list:
    """Concatenate `marked` of five uneven segments."""
    cuts_s = [0.0, *(length_s * share for share in (0.2, 0.21, 0.55, 0.8)), math.inf]
    parts = [marked(path, start_s, end_s, skipped) for start_s, end_s in itertools.pairwise(cuts_s)]
    return [mark for part in parts for mark in part]


@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_any_container_join_to_the_full_video(tmp_path, kind):
    path = write_kind(tmp_path, kind, film([make_texture(0)] * 100, [camera((3 * t, 0)) for t in range(100)]))
    assert union_of_segments(path, 4.0) == marked(path)


def test_segment_starts_near_its_key_frame_not_at_the_beginning(make_video):
    path = make_video(num_frames=1000)  # at most 250 frames between key frames
    skipped: list[float] = []
    assert len(marked(path, 35.0, 36.0, skipped)) == 25
    assert len(skipped) < 400


@pytest.mark.parametrize("name", ["a.mpg", "a.ts"])
def test_segment_is_decoded_from_the_beginning_if_seeking_ends_too_late(tmp_path, name):
    pictures = film([make_texture(0)] * 100, [camera((3 * t, 0)) for t in range(100)])
    path = write_video(tmp_path / name, pictures, "mpeg2video", "yuv420p", {"g": "75", "qscale": "2"})
    assert union_of_segments(path, 4.0) == marked(path)


def test_segment_past_the_end_is_empty(make_video):
    assert marked(make_video(num_frames=20), 5.0, 6.0) == []


@pytest.mark.slow
def test_segments_of_every_real_file_join_to_the_full_video(shared):
    """Test all decodable files of data/generic and data/odd, and every 17th of data/ucf101; no exception is known."""
    folders = [shared / "data/generic", shared / "data/odd"]
    paths = [
        path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder
    ]
    paths += sorted((shared / "data/ucf101").rglob("*.avi"))[::17]
    checked = 0
    for path in paths:
        expected = marked(path)
        times_s = [mark[0] for mark in expected if isinstance(mark, tuple)]
        if len(times_s) < 2 or "corrupt" in expected:  # segments before the damage are valid, all later ones report it
            continue
        assert union_of_segments(path, times_s[-1] - times_s[0]) == expected, path.name
        checked += 1
    assert checked > 60


def test_segments_before_damage_are_valid_and_later_ones_report_it(shared):
    path = shared / "data/odd/decord/corrupted.mp4"
    *expected, ending = marked(path)
    assert ending == "corrupt"
    first_s, last_s = expected[0][0], expected[-1][0]
    middle_s = (last_s - first_s) / 2
    assert marked(path, 0.0, middle_s) + marked(path, middle_s) == [*expected, "corrupt"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_of_a_photo_follow_its_exif_orientation(tmp_path: Path, orientation: int) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:20, :30], picture[-20:, -30:] = (255, 0, 0), (0, 255, 0)
    image, path = Image.fromarray(picture), tmp_path / "photo.jpg"
    exif = image.getexif()
    exif[0x010F], exif[0x0112] = "a phone", orientation  # make, orientation
    image.save(path, exif=exif, quality=95)
    (frame,) = frames(path, DecodeConfig(backend="pyav"))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 2
