"""Fixtures: small datasets, MLflow databases and mounted file systems."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset.manifest import Manifest, Shard, config_digest, write_manifest
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.storage.files import write_bytes
from cluster.storage.urls import join_url
from vgan.records import Clip, ClipScores
from vgan.video.config import ClipSpec, VideoConfig
from vgan.video.image_strips import write_strip

WriteDataset = Callable[..., Manifest]


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """Function that writes a dataset of `num_clips` clips (16 frames, 32 x 32 pixels) to a folder's URL.

    Clip n has the id clip-n. The color of its first pixel encodes n in base 256; its other values are n modulo 251.
    """

    def write(url: str, num_clips: int = 12, shard_rows: int = 5, seed: int = 0, codec: str = "raw") -> Manifest:
        video = VideoConfig(clip=ClipSpec(num_frames=16, size=32))
        shards = []
        for number, start in enumerate(range(0, num_clips, shard_rows)):
            rows = [_row(n) for n in range(start, min(start + shard_rows, num_clips))]
            if codec == "jpeg":
                rows = [row | {"frames": write_strip(pixels(row["frames"]))} for row in rows]
            data = shard_bytes(pa.Table.from_pylist(rows, clip_schema(video.clip, codec)))
            path = f"shards/shard-{number:06d}.parquet"
            write_bytes(join_url(url, path), data)
            shards.append(Shard(path=path, rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        content = {"clip": video.clip, "config": {"digest": config_digest(video), "seed": seed}, "shards": shards}
        manifest = Manifest(**content, counts={"clips": num_clips})
        manifest = Manifest(**content, counts={"clips": num_clips}, digest=manifest.content_digest())
        write_manifest(manifest, url)
        return manifest

    return write


def pixels(data: bytes) -> np.ndarray:
    """Decode raw frames to an array (T, H, W, C) of shape (16, 32, 32, 3), uint8."""
    return np.frombuffer(data, np.uint8).reshape(16, 32, 32, 3)


def _row(number: int) -> dict[str, Any]:
    """Make the dataset row of clip `number`."""
    frames = np.full((16, 32, 32, 3), number % 251, np.uint8)
    frames[0, 0, 0] = number // 65536, number // 256 % 256, number % 256
    clip = Clip(start_s=number / 2, shot=0, frames=frames, evidence=ClipScores(motion=float(number)))
    lineage = {"source_id": f"video-{number // 2}.mp4", "source_uri": f"/videos/video-{number // 2}.mp4"}
    return clip_row(clip, clip_id=f"clip-{number}", label=None, split=None, decoder="", **lineage)


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow database with its tables and only the default experiment, created once per session."""
    from cluster.observability.mlflow_tracker import Tracker

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    Tracker(f"sqlite:///{path}", "unused").client.search_experiments()
    return path


@pytest.fixture
def tracking_uri(_empty_database: Path, tmp_path: Path) -> str:
    """URI of a new MLflow database for this test; artifacts are stored beside it."""
    return f"sqlite:///{shutil.copy(_empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Function that mounts a tmpfs with the given options; skips the test if mounting is not permitted."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mounted(options: str) -> Path:
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if result.returncode:
            pytest.skip(f"mounting is not permitted here: {result.stderr.decode().strip()}")
        return folder

    yield mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)
