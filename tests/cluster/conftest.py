"""Small datasets, and an MLflow database whose tables are made once."""

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

from cluster import storage
from cluster.shards import Manifest, Shard, clip_row, clip_schema, config_digest, table_bytes, write_manifest
from vgan.config import ClipSpec, VideoConfig
from vgan.records import Clip, Evidence
from vgan.video.strips import write_strip

WriteDataset = Callable[..., Manifest]


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """Writes `num_clips` clips of 16 frames and 32 pixels to a folder's url; clip number n is called clip-n.

    Its first pixel's colour spells n in base 256, its other values are n modulo 251.
    """

    def write(url: str, num_clips: int = 12, shard_rows: int = 5, seed: int = 0, codec: str = "raw") -> Manifest:
        video = VideoConfig(clip=ClipSpec(num_frames=16, size=32))
        shards = []
        for number, start in enumerate(range(0, num_clips, shard_rows)):
            rows = [_row(n) for n in range(start, min(start + shard_rows, num_clips))]
            if codec == "jpeg":
                rows = [row | {"frames": write_strip(pixels(row["frames"]))} for row in rows]
            data = table_bytes(pa.Table.from_pylist(rows, clip_schema(video.clip, codec)))
            path = f"shards/shard-{number:06d}.parquet"
            storage.write_bytes(storage.join(url, path), data)
            shards.append(Shard(path=path, rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        content = {"clip": video.clip, "config": {"digest": config_digest(video), "seed": seed}, "shards": shards}
        manifest = Manifest(**content, counts={"clips": num_clips})
        manifest = Manifest(**content, counts={"clips": num_clips}, digest=manifest.content_digest())
        write_manifest(manifest, url)
        return manifest

    return write


def pixels(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(16, 32, 32, 3)


def _row(number: int) -> dict[str, Any]:
    frames = np.full((16, 32, 32, 3), number % 251, np.uint8)
    frames[0, 0, 0] = number // 65536, number // 256 % 256, number % 256
    clip = Clip(start_s=number / 2, shot=0, frames=frames, evidence=Evidence(motion=float(number)))
    lineage = {"source_id": f"video-{number // 2}.mp4", "source_uri": f"/videos/video-{number // 2}.mp4"}
    return clip_row(clip, clip_id=f"clip-{number}", label=None, split=None, decoder="", **lineage)


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and no experiment of ours."""
    from cluster.tracking import Tracker

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    Tracker(f"sqlite:///{path}", "unused").client.search_experiments()
    return path


@pytest.fixture
def tracking_uri(_empty_database: Path, tmp_path: Path) -> str:
    """A fresh MLflow database of this test's own; artifacts go beside it."""
    return f"sqlite:///{shutil.copy(_empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the given options; skips where mounting is not permitted."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mounted(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        return folder

    yield mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)
