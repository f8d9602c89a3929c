"""The data side at the size of the paper's corpus, without a pixel: `make bench-scale`. Prints a table.

2 million sources and 14 million clips go through the functions that the jobs call, at three sizes: seconds an item
should not grow. Stubs are what decodes and what writes pixels: commit records are made up, in the form that
`process_unit` writes. Each row is a process of its own, whose peak (resident, 0.3 GB of imports included) is its own.
Seconds are of the clock and of the CPU: they differ where other work runs. `SIZES=1e4,1e5` is a short run. Two million
small files come and go in TMPDIR: a disk that discards what is deleted at once takes an hour, memory minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dataset.deletion_list import replace_deleted
from cluster.dataset.manifest import REJECTS, Manifest, Shard, read_manifest, work_digest, write_manifest
from cluster.dataset.order import epoch_order, row_group_index
from cluster.dataset.shards import shard_bytes
from cluster.planning.config import CorpusConfig, MeasuredRates, NodeConfig, PriceConfig
from cluster.planning.cost_model import corpus_from_manifest, estimate_cost
from cluster.prepare import commit_records
from cluster.prepare.ledger import Ledger
from cluster.prepare.packing import PackingConfig, iter_shard_tables
from cluster.prepare.pipeline import WINDOW, inputs_digest, make_plan, name_videos
from cluster.prepare.progress import SourceHours
from cluster.prepare.selection import required_columns, select_clips
from cluster.prepare.status import dataset_status
from cluster.prepare.work_units import VideoTable, WorkUnitTable
from cluster.sources.manifest import Source, Sources, read_sources, write_sources
from cluster.storage.files import json_bytes, write_bytes
from vgan.records import ClipScores, Reject
from vgan.video.config import FilterConfig, VideoConfig
from vgan.video.fingerprint import PARTS, near_duplicates

SIZES = "1e4,1e5,2e6"
CLIPS = 8  # of 7 sources in 8, so 7 a source
KINDS = 64  # records that differ by more than their names
DONE = 0.95  # committed where a run is resumed
PACKING = PackingConfig()
# Near-duplicates have a row of their own: most of the time that judging takes.
VIDEO = VideoConfig(filters=FilterConfig(disabled=["near_duplicate"]))
STAND_INS = ("VIDEO---------------", "CLIP-----------", "SOURCE")  # of a video's name, 15 digits of it, a source's id


def sources(size: int) -> Iterator[Source]:
    """As a crawl of an object store lists them."""
    for n in range(size):
        name = f"{n % 1000:03d}/video-{n:08d}.mp4"
        told = {"bytes": 13_000_000 + n, "version": f"etag:{n:032x}", "duration_s": 20.0}
        yield Source(uri=f"s3://corpus/{name}", source_id=name, **told)


def record(kind: int) -> str:
    """The text of a commit record, with STAND_INS: one in 8 has no clip, one clip in 5 breaks a bound."""
    rng, whole = np.random.default_rng(kind), kind % 8 == 0
    video, clip, source = STAND_INS
    rows = []
    for k in range(0 if whole else CLIPS):
        residual_px, noise = (50.0 if rng.random() < 0.2 else 0.3), rng.random(4).tolist()
        scores = ClipScores(
            residual_px=residual_px,
            inlier_ratio=0.8 + 0.1 * noise[0],
            num_matches=80,
            photometric=2 + noise[1],
            motion=3 + noise[2],
            contrast=40 + noise[3],
            fingerprint=f"{video}{rng.integers(1 << 48):012x}",
            motion_signs=rng.bytes(32).hex(),
        )
        lineage = {"clip_id": f"{clip}{k}", "source_id": source, "source_uri": f"s3://corpus/{source}"}
        rows.append(asdict(scores) | lineage | {"start_s": 1.28 * k, "shot": 0, "decoder": "pyav", "crc32": 2**31 + k})
        rows[-1] |= {"label": None, "split": None}
    reject = Reject(start_s=None, stage="decode", reason="corrupt", detail="no frame")
    if not whole:
        reject = Reject(start_s=10.24, stage="stabilize", reason="too_few_matches", detail="3; at least 8")
    value = {
        "video": video,
        "segment": 0,
        "segments": 1,
        "settings": work_digest(VIDEO),
        "source": asdict(Source(uri=f"s3://corpus/{source}", source_id=source, bytes=13_000_000, duration_s=20.0)),
        "probe": None,
        "decoder": "pyav",
        "source_s": 20.0,
        "rejects": [asdict(reject)],
        "quarantined": False,
        "version": "1.0",
        "seconds": 3.205,
        "data": f"work/units/{video}.g0.0-00000000.frames" if rows else None,
        "clips": {key: [row[key] for row in rows] for key in rows[0]} if rows else {},
    }
    return json_bytes(value).decode()


def write_records(videos: VideoTable, start: int, end: int, out: str) -> None:
    """Stand for `process_unit` of these videos."""
    kinds = [record(kind) for kind in range(KINDS)]
    for n, (name, source) in enumerate(videos.rows(pa.array(range(start, end)))):
        text = kinds[n % KINDS]
        for stand_in, value in zip(STAND_INS, (name, name[:15], source.source_id), strict=True):
            text = text.replace(stand_in, value)
        with open(f"{out}/work/commits/{name}.g0.0of1.json", "w") as file:
            file.write(text)


def manifest(num_clips: int) -> Manifest:
    """Of a dataset of so many clips."""
    rows = PACKING.shard_rows(VIDEO.clip)
    shards = [
        Shard(path=f"shards/shard-{n:06d}.parquet", rows=min(rows, num_clips - start), bytes=400 << 20, sha256="0" * 64)
        for n, start in enumerate(range(0, num_clips, rows))
    ]
    config = {"work_digest": work_digest(VIDEO)}
    found = Manifest(clip=VIDEO.clip, config=config, counts={"clips": num_clips}, shards=shards)
    return replace(found, digest=found.content_digest())


class Clock:
    """Seconds spent in its blocks, by the wall's clock and of the CPU."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self.wall_s -= time.perf_counter()
        self.cpu_s -= time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter()
        self.cpu_s += time.process_time()


# ---- the rows: each times its stage in the folder `out` and returns how many items went through it ----------------


def left_to_do(found: Sources, out: str) -> WorkUnitTable:
    """What prepare finds to do in the folder `out`, told to its progress bar."""
    units = Ledger.read(out).pending_units(name_videos(found, VIDEO))
    SourceHours(units)
    return units


def write_list(size: int, out: str, clock: Clock) -> int:
    """What acquire ends with."""
    with clock:
        write_sources(sources(size), f"{out}/sources.parquet")
    return size


def list_and_plan(size: int, out: str, clock: Clock) -> int:
    """What prepare does until the first units are given to Ray."""
    with clock:
        units = left_to_do(read_sources(f"{out}/sources.parquet"), out)
        window = [asdict(unit) for unit in units[:WINDOW]]
    assert (len(units), len(window)) == (size, min(size, WINDOW))
    return size


def cost(size: int, out: str, clock: Clock) -> int:
    """What jobs.plan does with a manifest."""
    config, node = CorpusConfig(), NodeConfig()
    with clock:
        corpus = corpus_from_manifest(f"{out}/sources.parquet", config)
        estimate_cost(corpus, config, MeasuredRates(), node, node, PriceConfig(), steps=0, batch_size=64, codec="raw")
    assert corpus.videos == size
    return size


def resume_by_names(size: int, out: str, clock: Clock) -> int:
    """Resume where every record is a file of its own: their names alone are read."""
    found, other = read_sources(f"{out}/sources.parquet"), f"{out}/loose"
    os.makedirs(f"{other}/work/commits")
    done = int(DONE * size)
    for name in name_videos(found, VIDEO).names.slice(0, done):
        os.mknod(f"{other}/work/commits/{name}.g0.0of1.json")
    with clock:
        units = left_to_do(found, other)
    assert len(units) == size - done
    shutil.rmtree(other)
    return size


def move_records(size: int, out: str, clock: Clock) -> int:
    """What a run does with its records after each window of units."""
    videos, done = name_videos(read_sources(f"{out}/sources.parquet"), VIDEO), int(DONE * size)
    os.makedirs(f"{out}/work/commits")
    for start in range(0, done, WINDOW):
        write_records(videos, start, min(start + WINDOW, done), out)
        with clock:
            commit_records.compact_records(out)
    return done


def resume(size: int, out: str, clock: Clock) -> int:
    """Everything that the same command does, run again after a kill, until the first units are given to Ray."""
    with clock:
        units = left_to_do(read_sources(f"{out}/sources.parquet"), out)
    assert len(units) == size - int(DONE * size)
    return size


def tell_status(size: int, out: str, clock: Clock) -> int:
    """jobs.prepare action=status."""
    with clock:
        found = dataset_status(out)
    assert found.complete == int(DONE * size)
    return found.units


def is_it_done(size: int, out: str, clock: Clock) -> int:
    """The digest of what would go in, which tells whether a finished dataset is the one asked for."""
    found = read_sources(f"{out}/sources.parquet")
    with clock:
        inputs_digest(make_plan(found, out, VIDEO, PACKING), Ledger.read(out))
    return size


def pack_without_pixels(size: int, out: str, clock: Clock) -> int:
    """Records read, clips judged, counted and shuffled, the rejects written, every shard's rows taken."""
    found = read_sources(f"{out}/sources.parquet")
    write_records(name_videos(found, VIDEO), int(DONE * size), size, out)
    with clock:
        videos = name_videos(found, VIDEO)
        pieces = commit_records.iter_record_tables(Ledger.read(out), videos, required_columns(VIDEO))
        chosen = select_clips(pieces, found, VIDEO)
        write_bytes(f"{out}/{REJECTS}", shard_bytes(chosen.rejects))
        num_clips = sum(table.num_rows for table in iter_shard_tables(chosen.accepted, VIDEO, PACKING))
    assert num_clips == chosen.counts["clips"]
    return num_clips + chosen.num_by_reason.total()


def duplicates(size: int, _: str, clock: Clock) -> int:
    """The gate that compares every clip with every other source's."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (CLIPS * size * 7 // 8, 2), np.uint64)
    motion = rng.integers(0, 2**32, (len(words), PARTS), np.uint32)
    bounds = VIDEO.filters.max_duplicate_distance_bits, VIDEO.filters.min_duplicate_similarity
    with clock:
        near_duplicates(words, np.arange(len(words)) // 7, bounds[0], motion, bounds[1])
    return len(words)


def training_order(size: int, _: str, clock: Clock) -> int:
    """An epoch's order, with a deletion list of a thousand clips."""
    found = manifest(7 * size)
    with clock:
        groups = row_group_index(found)
        order = epoch_order(groups, found.digest, 0, 0)
        replace_deleted(order, groups[order[:, 0], 2] + order[:, 1], np.arange(1000))
    return len(order)


def manifests(size: int, out: str, clock: Clock) -> int:
    """manifest.json written and read."""
    with clock:
        found = manifest(7 * size)
        write_manifest(found, out)
        assert read_manifest(out) == found
    return 7 * size


STAGES = {
    "write the list of sources": write_list,
    "list, plan": list_and_plan,
    "cost of the corpus": cost,
    "resume, a file a record": resume_by_names,
    "move records together": move_records,
    "resume": resume,
    "status": tell_status,
    "is it done already?": is_it_done,
    "pack, but for pixels": pack_without_pixels,
    "near-duplicates": duplicates,
    "training order": training_order,
    "manifest": manifests,
}


def run_stage(name: str, size: int, out: str) -> None:
    """In a process of its own; prints items, seconds, CPU seconds and the peak in bytes as JSON."""
    clock = Clock()
    items = STAGES[name](size, out, clock)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps([items, clock.wall_s, clock.cpu_s, int(peak[1]) * 1024]))


def table() -> None:
    """Every stage at every size."""
    print(f"{'sources':>9}  {'stage':<28}{'items':>11}{'seconds':>9}{'CPU s':>8}{'CPU us/item':>13}{'peak GB':>9}")
    for size in [int(float(text)) for text in os.environ.get("SIZES", SIZES).split(",")]:
        with tempfile.TemporaryDirectory() as out:
            for name in STAGES:
                words = [sys.executable, __file__, name, str(size), out]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                items, wall_s, cpu_s, peak = json.loads(done.stdout.splitlines()[-1])
                each = f"{cpu_s / items * 1e6:>13.2f}{peak / 1e9:>9.2f}"
                print(f"{size:>9}  {name:<28}{items:>11}{wall_s:>9.1f}{cpu_s:>8.1f}{each}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run_stage(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        table()
