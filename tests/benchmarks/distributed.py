"""What distribution costs, in one run: `make bench-distributed`. Prints tables; asserts nothing.

A step on a Ray Train worker, with its DeepSpeed engines, its feed and all that jobs.train does around it, against a
bare loop of the same networks on clips in memory; the feed against other ways to read the same files; how long a step
stands still for a checkpoint. What is compared is taken in turns, so that other work on the machine falls on both.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from timing import seconds
from torch import Tensor

from cluster.checkpoints import store
from cluster.checkpoints.async_writer import AsyncCheckpointWriter
from cluster.dataset.loader import ClipReader, prefetch
from cluster.dataset.manifest import Manifest, Shard
from cluster.dataset.order import rank_slice
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.training.collectives import any_rank_true
from cluster.training.config import TrainConfig
from cluster.training.deepspeed_ops import configure_deepspeed
from cluster.training.engines import Engines, make_engines
from cluster.training.job import WorkerJob
from cluster.training.worker import all_finite, write_checkpoint
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.records import Clip, ClipScores
from vgan.training.ema import update_ema
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step
from vgan.video.config import ClipSpec
from vgan.video.image_strips import write_strip
from vgan.video.normalize import normalize_clips

BATCH, CLIPS, REPEATS = 8, 4096, 6
BASES = (64, 16)
SMALL = ClipSpec(num_frames=16, size=32)


def write_dataset(folder: Path, clips: int, rows: int, spec: ClipSpec, codec: str = "raw") -> Manifest:
    """Shards of `rows` clips of noise, which lz4 does not compress; as JPEG smooth, of a real clip's size. All shards
    are links to one, so that many are quickly made."""
    rng = np.random.default_rng(0)
    lineage = {"source_id": "s", "source_uri": "u", "label": None, "split": None, "decoder": ""}
    table = []
    for number in range(rows):
        frames = rng.integers(0, 256, (spec.num_frames, spec.size, spec.size, 3), np.uint8)
        clip = Clip(start_s=0, shot=0, frames=frames, evidence=ClipScores())
        table.append(clip_row(clip, clip_id=str(number), **lineage))
        if codec == "jpeg":
            smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in frames])
            table[-1]["frames"] = write_strip(smooth)
    data = shard_bytes(pa.Table.from_pylist(table, clip_schema(spec, codec)))
    (folder / "shard.parquet").write_bytes(data)
    shards = []
    for number in range(clips // rows):
        os.link(folder / "shard.parquet", folder / f"{number}.parquet")
        shards.append(Shard(path=f"{number}.parquet", rows=rows, bytes=len(data), sha256=""))
    return Manifest(clip=spec, config={}, counts={}, shards=shards, digest="0" * 64)


# ---- a step ------------------------------------------------------------------------------------------------------


def bare_step(config: TrainConfig, real: Tensor) -> Callable[[], object]:
    """One step as a plain loop takes it: the same networks, update and moving average, on clips in memory."""
    networks = make_networks(config.model)
    optimizers = {name: make_optimizer(name, net, config.objective) for name, net in networks.items()}
    nets = {name: LocalEngine(net, optimizers[name]) for name, net in networks.items()}
    average = make_networks(config.model)["generator"].requires_grad_(False)
    draws = StepRandomness.of_step(0, 1, len(real), config.model.z_size)

    def step() -> None:
        train_step(nets, real, draws, config.model, config.objective)
        update_ema(average, nets["generator"].module, 0.999)

    return step


def worker_step(config: TrainConfig, nets: Engines, reader: ClipReader) -> Callable[[], object]:
    """One step as jobs.train takes it: fed from shards, under DeepSpeed, checked on every rank."""
    feed, number = prefetch(reader.batches(0)), iter(range(1, sys.maxsize))

    def step() -> None:
        real = normalize_clips(next(feed).frames)
        draws = StepRandomness.of_step(0, next(number), config.batch_size, config.model.z_size)
        draws = draws.share(reader.rank, reader.world_size)
        done = train_step(nets.by_name, real, draws, config.model, config.objective)
        any_rank_true([not all_finite(done.metrics), False, False], nets.device)
        update_ema(nets.average, nets.by_name["generator"].module, 0.999)

    return step


def step_worker(loop: dict[str, object]) -> dict[str, object]:
    """On each Ray Train worker: seconds a step, ours and bare in turns; seconds that a checkpoint holds a step up."""
    config: TrainConfig = loop["config"]  # type: ignore[assignment]
    manifest: Manifest = loop["manifest"]  # type: ignore[assignment]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(int(loop["threads"]))  # type: ignore[call-overload]
    configure_deepspeed()
    first, end = rank_slice(config.batch_size, rank, world_size)
    nets = make_engines(
        config.model, config.objective, batch_size=end - first, zero_stage=0, precision=config.precision
    )
    reader = ClipReader(config.data, manifest, seed=0, batch_size=config.batch_size, rank=rank, world_size=world_size)
    steps = {"ours": worker_step(config, nets, reader)}
    if loop["bare"]:
        steps["bare"] = bare_step(config, torch.rand(config.batch_size, 3, 32, 64, 64) * 2 - 1)
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    found: dict[str, object] = {name: (min(values), float(np.median(values))) for name, values in taken.items()}
    if loop["bare"]:
        job = WorkerJob(config=config, manifest=manifest, tracker=None, run_id="", stop=None)  # type: ignore[arg-type]
        saved = f"{config.out}/saved"
        saver = AsyncCheckpointWriter(
            saved, "a", rank=rank, world_size=world_size, prune=partial(store.prune_checkpoints, saved, 2)
        )
        stalls, during, free = [], [], []
        for number in range(REPEATS):
            stalls.append(
                saver.save(number, lambda folder, n=number: write_checkpoint(nets, n, job, {}, folder), wait=False)
            )
            during.append(seconds(steps["ours"]))  # while it is uploaded
            saver.close()
            free.append(seconds(steps["ours"]))
        found["stall"] = float(np.median(stalls))
        found["slower"] = max(0.0, float(np.median(during)) - float(np.median(free)))
    return found


def on_workers(
    folder: Path, manifest: Manifest, base: int, workers: int, threads: int, *, bare: bool
) -> dict[str, object]:
    """What rank 0 of so many workers of so many threads has measured."""
    config = TrainConfig(
        data=str(folder / "large"), out=str(folder / "runs"), batch_size=BATCH, model=ModelConfig(base_width=base)
    )
    trainer = TorchTrainer(
        step_worker,
        train_loop_config={"config": config, "manifest": manifest, "threads": threads, "bare": bare},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name=f"{base}-{workers}-{threads}", storage_path=str(folder / "runs")),
    )
    return trainer.fit().return_value


def step_tables(folder: Path, manifest: Manifest) -> None:
    """Ours against bare, two workers against one, and checkpoints."""
    print(f"\nA step of G and D, batch {BATCH}, fp32, best (median) of {REPEATS} in seconds")
    print(f"{'':<10}{'bare loop, 1 thread':>24}{'1 worker, 1 thread':>24}{'1 worker, 2 threads':>24}{'2 workers':>20}")
    checkpoint_rows = []
    for base in BASES:
        one = on_workers(folder, manifest, base, 1, 1, bare=True)
        wide = on_workers(folder, manifest, base, 1, 2, bare=False)
        two = on_workers(folder, manifest, base, 2, 1, bare=False)
        cells = [one["bare"], one["ours"], wide["ours"], two["ours"]]
        shown = [f"{best:.3f} ({median:.3f})" for best, median in cells]  # type: ignore[misc]
        print(f"base {base:<5}{shown[0]:>24}{shown[1]:>24}{shown[2]:>24}{shown[3]:>20}", flush=True)
        interval = 100 * one["ours"][1]  # type: ignore[index]
        checkpoint_rows.append((base, one["stall"], one["slower"], interval))
    print(
        "\nA checkpoint in steady state: seconds training stands still, and by which a step beside its upload is longer"
    )
    print(f"{'':<10}{'stands still':>14}{'longer':>10}{'100 steps':>12}{'of 100 steps':>14}")
    for base, stall, slower, interval in checkpoint_rows:
        print(f"base {base:<5}{stall:>14.3f}{slower:>10.3f}{interval:>12.1f}{(stall + slower) / interval:>14.2%}")


# ---- the feed ----------------------------------------------------------------------------------------------------


def bare_read(folder: Path, manifest: Manifest) -> int:
    """Every row group of every shard, and nothing done with it; gives the clips."""
    clips = 0
    for shard in manifest.shards:
        file = pq.ParquetFile(folder / shard.path)
        for group in range(file.num_row_groups):
            clips += file.read_row_group(group, columns=["clip_id", "frames"]).num_rows
    return clips


def reader_of(folder: Path, manifest: Manifest, batch_size: int = 16) -> ClipReader:
    return ClipReader(str(folder), manifest, seed=0, batch_size=batch_size, rank=0, world_size=1)


def fed(folder: Path, manifest: Manifest, clips: int) -> int:
    """The feed of jobs.train."""
    feed = prefetch(reader_of(folder, manifest).batches(0))
    return sum(len(batch.frames) for batch in islice(feed, clips // 16))


def by_ray_data(folder: Path, manifest: Manifest) -> int:
    """Ray Data on the same files, shuffled in a buffer as large as the feed's window."""
    paths = [str(folder / shard.path) for shard in manifest.shards]
    data = ray.data.read_parquet(paths, columns=["frames"])

    def batches() -> Iterator[Tensor]:
        for batch in data.iter_batches(batch_size=16, batch_format="pyarrow", local_shuffle_buffer_size=512):
            frames = np.stack([np.frombuffer(clip.as_buffer(), np.uint8) for clip in batch["frames"]])
            yield torch.from_numpy(frames)

    return sum(len(frames) for frames in batches())


def feed_tables(folder: Path, large: Manifest, packed: Manifest) -> None:
    """Rates, the first batch, memory over epochs, and cost a clip by the number of files."""
    clip_mb = 32 * 64 * 64 * 3 / 1e6
    ways = {
        "bare row-group read": lambda: bare_read(folder / "large", large),
        "feed": lambda: fed(folder / "large", large, CLIPS),
        "feed, codec=jpeg": lambda: fed(folder / "packed", packed, CLIPS),
        "Ray Data": lambda: by_ray_data(folder / "large", large),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(4):
        for name, way in ways.items():
            began = time.perf_counter()
            clips = way()
            if turn:  # the first fills the page cache
                rates[name].append(clips / (time.perf_counter() - began))
    print(
        f"\nReading {CLIPS} clips of {clip_mb:.2f} MB from {len(large.shards)} files, one process, best (median) of 3"
    )
    best_bare = max(rates["bare row-group read"])
    for name, found in rates.items():
        best, median = max(found), float(np.median(found))
        rate = f"{best:,.0f} ({median:,.0f}) clips/s"
        print(f"{name:<22}{rate:>28}{best * clip_mb:>10,.0f} MB/s{best / best_bare:>8.0%} of the bare read")
    first = seconds(lambda: next(prefetch(reader_of(folder / "large", large).batches(0))))
    print(f"first batch after {first:.2f} s")
    gc.collect()
    process, memory = psutil.Process(), []
    feed = prefetch(reader_of(folder / "large", large).batches(0))
    for _ in range(10):
        for _ in islice(feed, CLIPS // 16):
            pass
        memory.append(process.memory_info().rss / 1e9)
    print("memory after each of ten epochs, GB: " + ", ".join(f"{gb:.2f}" for gb in memory))
    print("\nCost a clip (16x32x32) by the number of files of 8, milliseconds, whole epochs")
    for files in (10, 100, 1000, 10_000):
        with tempfile.TemporaryDirectory() as scratch:
            manifest = write_dataset(Path(scratch), files * 8, 8, SMALL)
            clips = min(files * 8, 8000) // 16 * 16
            cost = min(seconds(lambda m=manifest, c=clips, s=scratch: fed(Path(s), m, c)) for _ in range(3))
        print(f"{files:>8} files{cost / clips * 1000:>10.3f}", flush=True)


def main() -> None:
    """All tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("large", "packed"):
            (folder / name).mkdir()
        large = write_dataset(folder / "large", CLIPS, 128, ClipSpec())
        packed = write_dataset(folder / "packed", CLIPS, 128, ClipSpec(), "jpeg")
        ray.init("local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        feed_tables(folder, large, packed)
        step_tables(folder, large)
        ray.shutdown()


if __name__ == "__main__":
    main()
