"""Packing under SIGKILLs at random points: a dataset's folder never holds half a dataset, and an old one stays."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.verify import check_shard
from cluster.observability import prometheus
from cluster.prepare import packing
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import make_plan, name_videos, prepare_dataset
from cluster.prepare.process_unit import process_unit
from cluster.prepare.work_units import WorkUnit
from cluster.sources.manifest import list_folder
from vgan.synthetic import draw_clip
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4

NUM_KILLS = 20
VIDEO = VideoConfig(
    clip=ClipSpec(num_frames=16, size=128, stride=4),  # 1 clip per shard of 1 MB
    decode=DecodeConfig(short_side=128),
    stabilize=StabilizeConfig(preset="off"),
    filters=FilterConfig(disabled=["near_duplicate"]),
)
INLINE = SimpleNamespace(remote=lambda **_: lambda write: SimpleNamespace(remote=write), get=lambda shard: shard)


def pack(videos: str, out: str, seed: int) -> Manifest:
    """Pack a dataset whose videos are decoded, writing the shards in this process instead of in Ray tasks."""
    packing.ray, packing.decode_labels = INLINE, dict
    prometheus.increment = lambda *_, **__: None
    sources = list_folder(videos)[0]
    return prepare_dataset(make_plan(sources, out, VIDEO, PackingConfig(seed=seed, shard_mb=1), overwrite=True))


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Folder of four videos, and a dataset's folder with their commit records."""
    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("decoded")
    for n in range(4):
        write_mp4(draw_clip("Spin", num_frames=96, size=(128, 160), seed=n).frames, videos / f"{n}.mp4", 25.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "increment", lambda *_, **__: None)
        for name, source in name_videos(list_folder(str(videos))[0], VIDEO).items():
            process_unit(asdict(WorkUnit(name, source)), str(out), VIDEO)
    return str(videos), out


def start(videos: str, out: Path, seed: int) -> BaseProcess:
    """Start to pack in a child process, forked from one that has imported what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cluster.prepare.pipeline", "vgan.synthetic"])
    child = context.Process(target=pack, args=(videos, str(out), seed))
    child.start()
    return child


def kill_while_packing(videos: str, out: Path, seed: int, delay_s: float) -> None:
    """Pack in a child process and kill it `delay_s` seconds after its first shard."""
    before = shard_files(out)
    child = start(videos, out, seed)
    while shard_files(out) <= before and child.is_alive():
        time.sleep(0.002)
    child.join(delay_s)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)


def shard_files(out: Path) -> set[Path]:
    return set((out / "shards").rglob("*.parquet"))


def read_digest(out: Path) -> str:
    """Return the digest of a dataset after comparing every shard with the manifest; "" without a manifest."""
    if not (out / "manifest.json").exists():
        return ""
    manifest = read_manifest(str(out))
    assert manifest.content_digest() == manifest.digest
    results = [check_shard(str(out), shard) for shard in manifest.shards]
    assert [defect for defects, _ in results for defect in defects] == []
    assert len({name for _, names in results for name in names}) == manifest.counts["clips"]
    return manifest.digest


@pytest.mark.slow
def test_packing_killed_at_twenty_random_points_never_leaves_half_a_dataset(
    decoded: tuple[str, Path], tmp_path: Path
) -> None:
    videos, out = decoded
    rng, digests = random.Random(1), []
    for seed in (0, 1):
        start(videos, out, seed).join()
        digests.append(read_digest(out))
    times = [path.stat().st_mtime for path in shard_files(out)]
    packing_s = (out / "manifest.json").stat().st_mtime - min(times)
    unfinished = replaced = 0
    for n in range(NUM_KILLS // 2):  # a first packing
        first = tmp_path / f"first-{n}"
        first.mkdir()
        (first / "work").symlink_to(out / "work")
        kill_while_packing(videos, first, 1, rng.uniform(0, packing_s))
        found = read_digest(first)
        assert found in ("", digests[1])
        unfinished += not found
    current = 1
    for _ in range(NUM_KILLS // 2):  # packing again with the other seed
        kill_while_packing(videos, out, 1 - current, rng.uniform(0, packing_s))
        found = read_digest(out)
        assert found in digests
        replaced += found != digests[current]
        current = digests.index(found)
    for folder in (out, tmp_path / "first-0"):  # after any kill, the same command completes the dataset
        start(videos, folder, 1).join()
        assert read_digest(folder) == digests[1]
        assert len(shard_files(folder)) == len(times)
    print(
        f"{len(times)} shards in {packing_s:.2f} s; first packing: {unfinished} of {NUM_KILLS // 2} without a "
        f"manifest; packing again: {replaced} of {NUM_KILLS // 2} replaced, the others as before"
    )
    assert unfinished > 0
    assert replaced < NUM_KILLS // 2
