"""Strips are read and written in both layouts with little loss; other pictures are rejected."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgan.errors import VideoError
from vgan.video import image_strips
from vgan.video.config import DecodeConfig
from vgan.video.decoding import decode
from vgan.video.decoding.isolated_decoder import Decoder


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Clip (5, 32, 32, 3) uint8 with a different color per frame and a mark in the top left corner."""
    frames = np.stack([np.full((32, 32, 3), (40 * t, 255 - 40 * t, 128), np.uint8) for t in range(5)])
    frames[:, :8, :8] = 255
    return frames


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def reason(data: bytes) -> str:
    with pytest.raises(VideoError) as caught:
        image_strips.read_strip(data)
    assert caught.value.stage == "decode"
    return caught.value.reason


def picture(pixels: np.ndarray, format_: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=format_)
    return out.getvalue()


@pytest.mark.parametrize("vertical", [True, False])
def test_strip_returns_the_frames_in_order(clip: np.ndarray, vertical: bool) -> None:
    data = image_strips.write_strip(clip, vertical=vertical)
    assert Image.open(io.BytesIO(data)).size == ((32, 160) if vertical else (160, 32))
    read = image_strips.read_strip(data)
    assert read.shape == clip.shape
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - clip).max() <= 4


def test_strip_of_one_frame_is_one_frame(clip: np.ndarray) -> None:
    assert image_strips.read_strip(image_strips.write_strip(clip[:1])).shape == (1, 32, 32, 3)


def test_strip_of_real_video_keeps_color_and_detail(shared: Path) -> None:
    psnrs = []
    for path in sorted((shared / "data/ucf101/UCF-101").glob("*/*.avi"))[::17]:
        images = [frame.image for frame in islice(decode.frames(path, DecodeConfig()), 32)]
        left = (images[0].shape[1] - 128) // 2
        frames = np.ascontiguousarray(np.stack(images)[:, :, left : left + 128])
        read = image_strips.read_strip(image_strips.write_strip(frames))
        assert read.shape == (32, 128, 128, 3)
        psnrs.append(psnr_db(read, frames))
    assert np.median(psnrs) > 42
    assert min(psnrs) > 39


def test_official_horizontal_strips_are_read_completely(shared: Path) -> None:
    paths = sorted((shared / "data/weizmann/actions").glob("*/*.jpg"))
    clips = [image_strips.read_strip(path.read_bytes()) for path in paths]
    assert {clip.shape[1:] for clip in clips} == {(64, 64, 3)}
    assert sum(map(len, clips)) == 2645
    for clip in clips:  # a wrong split would shift the picture within the frame; adjacent frames are similar
        assert np.abs(np.diff(clip.astype(int), axis=0)).mean() < 10
    first = np.asarray(Image.open(paths[0]))
    np.testing.assert_array_equal(clips[0][3], first[:, 3 * 64 : 4 * 64, :3])


@pytest.mark.parametrize("pixels", [(160, 32), (160, 32, 4)], ids=["gray", "alpha"])
def test_strip_of_other_pixels_becomes_rgb(pixels: tuple[int, ...]) -> None:
    read = image_strips.read_strip(picture(np.full(pixels, 77, np.uint8)))
    assert read.shape == (5, 32, 32, 3)
    assert (read == 77).all()


@pytest.mark.parametrize("size", [(100, 32), (32, 100), (65, 64)])
def test_picture_of_another_shape_is_not_a_strip(size: tuple[int, int]) -> None:
    assert reason(picture(np.zeros((*size, 3), np.uint8))) == "not_a_strip"


def claims(width: int, height: int) -> bytes:
    """Create a PNG of a few bytes whose header declares this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_hostile_pictures_are_bad_videos(clip: np.ndarray) -> None:
    jpeg, png = image_strips.write_strip(clip), picture(clip.reshape(160, 32, 3))
    assert reason(b"") == reason(b"not a picture at all") == reason(jpeg[:10]) == "cannot_open"
    assert reason(claims(128, 128 * 8192)) == reason(claims(60_000, 60_000)) == "cannot_open"
    assert reason(claims(128, 1280)) == "corrupt"
    assert reason(jpeg[:-60]) == reason(png[: len(png) // 2]) == "corrupt"


def test_damaged_strips_are_read_or_rejected(clip: np.ndarray) -> None:
    random = np.random.default_rng(0)
    for good in (image_strips.write_strip(clip), picture(clip.reshape(160, 32, 3))):
        rejected = 0
        for _ in range(300):
            data = np.frombuffer(good, np.uint8).copy()
            data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            try:
                assert image_strips.read_strip(data.tobytes()).ndim == 4
            except VideoError as error:
                rejected += error.stage == "decode"
        assert rejected > 10


def test_strip_frames_have_times_and_are_reduced_but_not_enlarged(clip: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a:b.jpg"
    path.write_bytes(image_strips.write_strip(clip))
    frames = list(image_strips.strip_frames(path, fps=25, short_side=16))
    assert [frame.pts_s for frame in frames] == [0.0, 0.04, 0.08, 0.12, 0.16]
    assert {frame.image.shape for frame in frames} == {(16, 16, 3)}
    assert np.abs(frames[3].image[8:, 8:].astype(int) - clip[3, 16:, 16:][::2, ::2]).max() <= 4
    assert {frame.image.shape for frame in image_strips.strip_frames(path, fps=25, short_side=64)} == {(32, 32, 3)}


def test_strip_frames_of_no_file_is_a_bad_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cannot_open"):
        list(image_strips.strip_frames(tmp_path / "missing.jpg", fps=25))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 32, 48, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((600, 128, 128, 3), np.uint8),
    ],
    ids=["not square", "float", "none", "too many"],
)
def test_write_strip_rejects_invalid_frames(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"strip holds|frames must be"):
        image_strips.write_strip(frames)


def test_read_list_returns_paths_without_labels_blanks_and_line_ends() -> None:
    text = (
        "\ufeffgolf/1.mp4/0000.jpg\r\n\r\n  beach/2.mp4/0001.jpg \r\nv_Archery_g01_c01.jpg 3\nmy clips/4.jpg\t12\n5.jpg"
    )
    assert image_strips.read_list(text) == [
        "golf/1.mp4/0000.jpg",
        "beach/2.mp4/0001.jpg",
        "v_Archery_g01_c01.jpg",
        "my clips/4.jpg",
        "5.jpg",
    ]
    assert image_strips.read_list("\n \r\n") == []


def test_decoder_plays_a_strip_like_a_video(clip: np.ndarray, tmp_path: Path) -> None:
    long = np.concatenate([clip] * 4)
    (tmp_path / "0001.jpg").write_bytes(image_strips.write_strip(long))
    with Decoder(DecodeConfig(strip_fps=10)) as decoder:
        probe = decoder.probe(tmp_path / "0001.jpg")
        frames = list(decoder.frames(tmp_path / "0001.jpg"))
        assert decoder.backend.startswith("pillow ")
        part = [frame.pts_s for frame in decoder.frames(tmp_path / "0001.jpg", 0.5, 0.8)]
    assert part == [0.5, 0.6, 0.7]
    assert (probe.duration_s, probe.width, probe.height, probe.container) == (2.0, 32, 32, "strip")
    assert [frame.pts_s for frame in frames] == [n / 10 for n in range(20)]
    assert psnr_db(np.stack([frame.image for frame in frames]), long) > 35


def test_is_strip_distinguishes_strips_from_pictures_and_animations(
    clip: np.ndarray, tmp_path: Path, shared: Path
) -> None:
    (tmp_path / "short.jpg").write_bytes(image_strips.write_strip(clip))
    assert not image_strips.is_strip(tmp_path / "short.jpg")
    assert not image_strips.is_strip(shared / "data" / "odd" / "file-type" / "fixture.apng")
    assert not image_strips.is_strip(tmp_path / "missing.jpg")
    weizmann = sorted((shared / "data" / "weizmann").rglob("*.jpg"))
    assert len(weizmann) == 36
    assert all(map(image_strips.is_strip, weizmann))
