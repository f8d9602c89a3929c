"""Twenty SIGKILLs at random processes of the job, at random times; run again until done: the same bytes each time."""

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

from vgan.drawn import draw_clip
from vgan.video.encode import write_mp4

NUM_KILLS = 20
KINDS = ("worker", "raylet", "driver", "decoder")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    kinds = ("Spin", "Bounce", "Circle")
    for n in range(12):
        frames = draw_clip(kinds[n % 3], num_frames=160, size=(120, 160), seed=n).frames
        write_mp4(frames, folder / f"{n:02d}.mp4", 25.0)
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    return folder


def start(videos: Path, out: Path, scratch: Path) -> subprocess.Popen[bytes]:
    """The job as users start it, in a process group of its own."""
    words = [
        f"sources={videos}",
        f"out={out}",
        "clip.stride=8",
        "shard_mb=20",
        f"tracking.uri=sqlite:///{scratch}/m.db",
    ]
    log = (scratch / "log.txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", *words], stdout=log, stderr=log, start_new_session=True
    )


def kind_of(process: psutil.Process) -> str:
    """worker, raylet or decoder; "" for others and for those that have just ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    line = " ".join(words)
    if words and os.path.basename(words[0]) == "raylet":
        return "raylet"
    if "vgan.video.child" in line:
        return "decoder"
    return "worker" if line.startswith("ray::") else ""


def stop_all(processes: list[psutil.Process]) -> None:
    """End what a killed driver or raylet left behind; these are the job's own."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def run_with_kills(videos: Path, out: Path, scratch: Path, rng: random.Random, budget: int) -> Counter[str]:
    """Run the job until it succeeds, killing up to `budget` of its processes on the way. Returns what was killed."""
    killed: Counter[str] = Counter()
    for _ in range(budget + 2):
        job = start(videos, out, scratch)
        driver = psutil.Process(job.pid)
        family: list[psutil.Process] = [driver]
        deadline = time.monotonic() + 240
        wanted, strike = rng.choice(KINDS), time.monotonic() + rng.uniform(4, 16)
        while job.poll() is None:
            assert time.monotonic() < deadline, "the job hangs"
            family = list({*family, *_descendants(driver)})
            victims = [driver] if wanted == "driver" else [p for p in family if kind_of(p) == wanted]
            if killed.total() < budget and time.monotonic() > strike and victims:
                try:
                    rng.choice(victims).send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                killed[wanted] += 1
                wanted, strike = rng.choice(KINDS), time.monotonic() + rng.uniform(1, 6)
            time.sleep(0.1)
        stop_all([p for p in family if p.pid != job.pid])
        if job.returncode == 0:
            return killed
    raise AssertionError((scratch / "log.txt").read_text()[-3000:])


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_prepare_killed_twenty_times_gives_the_digest_of_an_undisturbed_run(videos: Path, tmp_path: Path) -> None:
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
    assert set(killed) == set(KINDS)
