"""Prepare job between buckets of a real S3 server, with one request in twenty failing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import Faults, environment, failing_proxy, required_in_ci, s3_server

from vgan.synthetic import draw_clip
from vgan.video.encode import write_mp4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(required_in_ci() is not None, reason=str(required_in_ci())),
]
NUM_VIDEOS = 12


def prepare(endpoint: str, scratch: Path, *argv: str) -> str:
    """Run jobs.prepare as users do and return its standard output."""
    return run_job(endpoint, "jobs.prepare", *argv, f"tracking.uri=sqlite:///{scratch}/mlflow.db")


def run_job(endpoint: str, *argv: str) -> str:
    """Run a job as users do and return its standard output."""
    job = subprocess.run(
        [sys.executable, "-m", *argv],
        env=os.environ | environment(endpoint),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-3000:]
    return job.stdout


def test_prepare_through_a_failing_network_is_complete_without_duplicates(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with s3_server(store, "corpus", "datasets") as endpoint:
        for n in range(NUM_VIDEOS):
            frames = draw_clip(("Spin", "Bounce", "Circle")[n % 3], num_frames=96, size=(96, 128), seed=n).frames
            write_mp4(frames, store / "corpus" / f"{n:02d}.mp4", 25.0)
        (store / "corpus" / "broken.mp4").write_bytes(b"not a video" * 100)
        argv = ("sources=s3://corpus", "clip.stride=16", "shard_mb=4", "filters.disabled=[near_duplicate]")
        prepare(endpoint, tmp_path, *argv, "out=s3://datasets/calm")
        faults = Faults(rate=0.05, seed=1)
        with failing_proxy(endpoint, faults) as failing:
            prepare(failing, tmp_path, *argv, "out=s3://datasets/stormy")
            assert faults.done.total() - faults.done["passed"] >= 5  # enough requests failed
            requests = faults.done.total()
            assert "already prepared" in prepare(failing, tmp_path, *argv, "out=s3://datasets/stormy")
            assert faults.done.total() - requests < 40  # it listed and read records but fetched no video
        assert "intact: s3://" in run_job(endpoint, "jobs.dataset", "verify", "data=s3://datasets/stormy")
    calm, stormy = (json.loads((store / "datasets" / n / "manifest.json").read_text()) for n in ("calm", "stormy"))
    assert stormy["digest"] == calm["digest"]
    assert stormy["counts"]["sources"] == NUM_VIDEOS + 1
    assert stormy["counts"]["accepted"] > NUM_VIDEOS // 2
    commits = [path.name for path in (store / "datasets" / "stormy" / "work" / "commits").iterdir()]
    assert len(commits) == len({name.split(".")[0] for name in commits}) == NUM_VIDEOS + 1
