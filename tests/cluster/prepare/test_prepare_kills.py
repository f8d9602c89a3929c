"""Prepare job under twenty SIGKILLs of random processes at random times, rerun until done: deterministic bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from vgan.synthetic import draw_clip
from vgan.video.encode import write_mp4

NUM_KILLS = 20
PROCESS_TYPES = ("worker", "raylet", "driver", "decoder")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    scenes = ("Spin", "Bounce", "Circle")
    for n in range(12):
        frames = draw_clip(scenes[n % 3], num_frames=160, size=(120, 160), seed=n).frames
        write_mp4(frames, folder / f"{n:02d}.mp4", 25.0)
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    return folder


def start(videos: Path, out: Path, scratch: Path) -> subprocess.Popen[bytes]:
    """Start the job as users do, in its own process group."""
    argv = [
        f"sources={videos}",
        f"out={out}",
        "clip.stride=8",
        "shard_mb=20",
        f"tracking.uri=sqlite:///{scratch}/m.db",
    ]
    log = (scratch / "log.txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", *argv], stdout=log, stderr=log, start_new_session=True
    )


def process_type(process: psutil.Process) -> str:
    """Return worker, raylet or decoder; "" for other processes and those that have just ended."""
    try:
        argv = process.cmdline()
    except psutil.Error:
        return ""
    line = " ".join(argv)
    if argv and os.path.basename(argv[0]) == "raylet":
        return "raylet"
    if "vgan.video.decoding.isolated_decoder" in line:
        return "decoder"
    return "worker" if line.startswith("ray::") else ""


def stop_all(processes: list[psutil.Process]) -> None:
    """Kill processes of this job that outlived a killed driver or raylet."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def run_with_kills(videos: Path, out: Path, scratch: Path, rng: random.Random, budget: int) -> Counter[str]:
    """Run the job until it succeeds, killing up to `budget` of its processes; returns the kills by type."""
    killed: Counter[str] = Counter()
    for _ in range(budget + 2):
        job = start(videos, out, scratch)
        driver = psutil.Process(job.pid)
        job_processes: list[psutil.Process] = [driver]
        deadline = time.monotonic() + 240
        target, kill_time = rng.choice(PROCESS_TYPES), time.monotonic() + rng.uniform(4, 16)
        while job.poll() is None:
            assert time.monotonic() < deadline, "the job hangs"
            job_processes = list({*job_processes, *_descendants(driver)})
            victims = [driver] if target == "driver" else [p for p in job_processes if process_type(p) == target]
            if killed.total() < budget and time.monotonic() > kill_time and victims:
                try:
                    rng.choice(victims).send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                killed[target] += 1
                target, kill_time = rng.choice(PROCESS_TYPES), time.monotonic() + rng.uniform(1, 6)
            time.sleep(0.1)
        stop_all([p for p in job_processes if p.pid != job.pid])
        if job.returncode == 0:
            return killed
    raise AssertionError((scratch / "log.txt").read_text()[-3000:])


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_prepare_killed_twenty_times_has_the_digest_of_an_undisturbed_run(videos: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    assert start(videos, calm, tmp_path).wait(timeout=240) == 0
    expected = json.loads((calm / "manifest.json").read_text())["digest"]
    rng, killed = random.Random(0), Counter[str]()
    for attempt in range(NUM_KILLS):
        out = tmp_path / f"killed-{attempt}"
        killed += run_with_kills(videos, out, tmp_path, rng, NUM_KILLS - killed.total())
        assert json.loads((out / "manifest.json").read_text())["digest"] == expected
        if killed.total() >= NUM_KILLS:
            break
    print(f"killed: {dict(killed)}")
    assert killed.total() == NUM_KILLS
    assert set(killed) == set(PROCESS_TYPES)
