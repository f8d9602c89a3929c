"""Encoded files have the right format, size, frame rate and pictures."""

from __future__ import annotations

import av
import numpy as np
import pytest
from moving_pictures import camera, film, make_texture
from PIL import Image

from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import frames
from vgan.video.encode import write_avi, write_gif, write_mp4


def pictures(num_frames: int = 12) -> np.ndarray:
    return film([make_texture(0)] * num_frames, [camera((2 * t, 0)) for t in range(num_frames)])


def test_write_mp4_is_what_browsers_play(tmp_path):
    write_mp4(pictures()[:, :101, :75], tmp_path / "odd_size.mp4", 30000 / 1001)
    with av.open(str(tmp_path / "odd_size.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (76, 102, 12)
        assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)
    data = (tmp_path / "odd_size.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # playback can start before the download ends


def test_write_avi_quality_trades_size_for_accuracy(tmp_path):
    written = pictures()
    sizes, errors = [], []
    for quality in (2, 20):
        path = tmp_path / f"{quality}.avi"
        write_avi(written, path, 25, quality=quality)
        read = np.stack([frame.image for frame in frames(path, DecodeConfig())])
        assert read.shape == written.shape
        sizes.append(path.stat().st_size)
        errors.append(np.abs(read.astype(int) - written).mean())
    assert sizes[0] > 2 * sizes[1]
    assert errors[0] < errors[1]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.codec_tag == "XVID"


@pytest.mark.parametrize("fps", [25, 30, 12.5])
def test_write_gif_loops_for_the_right_time(tmp_path, fps):
    path = tmp_path / "clip.gif"
    write_gif(pictures(31), path, fps)
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 31
        durations_ms = []
        for index in range(image.n_frames):
            image.seek(index)
            durations_ms.append(image.info["duration"])
    assert sum(durations_ms) == pytest.approx(31 / fps * 1000, abs=5)


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8)]
)
def test_write_rejects_arrays_that_are_not_video(tmp_path, bad):
    for write in (write_mp4, write_avi, write_gif):
        with pytest.raises(ValueError, match="frames must be uint8"):
            write(bad, tmp_path / "file", 25)
