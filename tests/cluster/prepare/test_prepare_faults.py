"""Prepare job with a full disk or wrong credentials: one clear error line, exit code 2, and a later run resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import environment, required_in_ci, s3_server

from vgan.synthetic import draw_clip
from vgan.video.encode import write_mp4

pytestmark = pytest.mark.slow  # each run starts its own Ray


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for n in range(4):
        frames = draw_clip("Spin", num_frames=96, size=(96, 128), seed=n).frames
        write_mp4(frames, folder / f"{n}.mp4", 25.0)
    return folder


def prepare(scratch: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *argv, f"tracking.uri=sqlite:///{scratch}/mlflow.db"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_line(job: subprocess.CompletedProcess[str]) -> str:
    return job.stderr.strip().splitlines()[-1]


def test_prepare_on_a_full_disk_fails_clearly_and_resumes_with_space(
    videos: Path, tmp_path: Path, mount: Callable[[str], Path]
) -> None:
    disk = mount("size=2m")  # one clip's pixels are 393 kB, a video's 4.7 MB
    argv = (f"sources={videos}", f"out={disk}/clips", "clip.stride=8", "filters.disabled=[near_duplicate]")
    job = prepare(tmp_path, *argv)
    assert job.returncode == 2, job.stderr[-2000:]
    assert last_line(job).startswith("error: no space left to write")
    assert "Traceback" not in job.stdout
    assert not list((disk / "clips" / "work").rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    job = prepare(tmp_path, *argv)
    assert job.returncode == 0, job.stderr[-2000:]
    assert "sources = accepted + rejected: 4 = 4 + 0" in job.stdout


@pytest.mark.skipif(required_in_ci() is not None, reason=str(required_in_ci()))
def test_prepare_with_wrong_credentials_fails_early_and_shows_no_secret(videos: Path, tmp_path: Path) -> None:
    with s3_server(tmp_path / "store", "datasets") as endpoint:
        wrong = environment(endpoint) | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
        job = prepare(tmp_path, f"sources={videos}", "out=s3://datasets/clips", **wrong)
    assert job.returncode == 2, job.stderr[-2000:]
    assert "refuses the credentials" in last_line(job)
    assert "not-the-secret" not in job.stdout + job.stderr
    assert "local one for this job" not in job.stdout  # no Ray was started for it
