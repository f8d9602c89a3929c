"""Fixtures that create videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from moving_pictures import camera, film, make_texture

from vgan.video.encode import write_mp4


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes frames (T, H, W, 3), or `num_frames` of a slow pan, to an MP4 and returns its path."""

    def make(
        frames: np.ndarray | None = None, name: str = "video.mp4", fps: float = 25.0, num_frames: int = 40
    ) -> Path:
        if frames is None:
            frames = film([make_texture(0)] * num_frames, [camera((t / 2, 0)) for t in range(num_frames)])
        path = tmp_path / name
        write_mp4(frames, path, fps)
        return path

    return make
