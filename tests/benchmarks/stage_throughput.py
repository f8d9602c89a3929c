"""Rates of each stage on one core, on drawn video, in one run: `make bench`. Prints a table; asserts nothing."""

from __future__ import annotations

import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.dataset.loader import ClipReader
from cluster.dataset.manifest import Manifest, Shard
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.prepare.packing import write_shard
from vgan.allocator import keep_freed_memory
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.records import Clip, ClipScores
from vgan.synthetic import draw_clip
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.decoding.isolated_decoder import Decoder
from vgan.video.encode import write_avi, write_mp4
from vgan.video.stabilization.stabilize import crop_only, stabilize

REPEATS = 5
IDS = {"source_id": "s", "source_uri": "u", "label": None, "split": None, "decoder": ""}


def rate(
    units: float, run: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, float]:
    """Units a second: lowest, median and highest of REPEATS runs after one that is not counted."""
    run()
    rates = []
    for _ in range(REPEATS):
        start = clock()
        run()
        rates.append(units / (clock() - start))
    low, *_, high = sorted(rates)
    return low, float(np.median(rates)), high


def video_rows(folder: Path) -> list[tuple[str, str, tuple[float, float, float]]]:
    """Decoding, in this process and in the child that a worker keeps; stabilization, by itself and with the scores."""
    clip = draw_clip("Circle", num_frames=250, size=(240, 320)).frames
    avi, mp4 = folder / "drawn.avi", folder / "drawn.mp4"
    write_avi(clip, avi, 25)
    write_mp4(draw_clip("Circle", num_frames=250, size=(360, 640)).frames, mp4, 30)
    small = np.stack([cv2.resize(f, (170, 128), interpolation=cv2.INTER_AREA) for f in clip[:32]])
    config = VideoConfig()
    decoded = list(frames(avi, config.decode))
    windows = len(decoded) // config.clip.num_frames
    with Decoder(config.decode) as child:
        return [
            ("decode 320x240 mpeg4", "frames/s", rate(250, lambda: count(frames(avi, config.decode)))),
            ("  in a child process", "frames/s", rate(250, lambda: count(child.frames(avi)))),
            ("  640x360 h264, in a child", "frames/s", rate(250, lambda: count(child.frames(mp4)))),
            ("stabilize at 128 px", "frames/s", rate(32, lambda: stabilize(small, StabilizeConfig(), 64))),
            (
                "  preset=paper",
                "frames/s",
                rate(32, lambda: stabilize(small, StabilizeConfig(preset="paper"), 64)),
            ),
            (
                "  with cuts and scores",
                "frames/s",
                rate(32 * windows, lambda: count(extract_clips(iter(decoded), config))),
            ),
            ("  crop only", "frames/s", rate(32, lambda: crop_only(small, 64))),
        ]


def count(items: Iterable[object]) -> int:
    """How many there are, none kept."""
    return sum(1 for _ in items)


def reader_rows(folder: Path) -> list[tuple[str, str, tuple[float, float, float]]]:
    """The training feed against a bare read of the same row groups."""
    spec = ClipSpec()
    rng = np.random.default_rng(0)
    clip = Clip(start_s=0, shot=0, frames=rng.integers(0, 256, (32, 64, 64, 3), np.uint8), evidence=ClipScores())
    rows = [clip_row(clip, clip_id=str(i), **IDS) for i in range(256)]
    data = shard_bytes(pa.Table.from_pylist(rows, clip_schema(spec)))
    (folder / "shard.parquet").write_bytes(data)
    shard = Shard(path="shard.parquet", rows=256, bytes=len(data), sha256="")
    manifest = Manifest(clip=spec, config={}, counts={}, shards=[shard], digest="0" * 64)

    def bare() -> None:
        file = pq.ParquetFile(folder / "shard.parquet")
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=["clip_id", "frames"])

    def fed() -> None:
        reader = ClipReader(str(folder), manifest, seed=0, batch_size=16, rank=0, world_size=1)
        for _, _batch in zip(range(16), reader.batches(0), strict=False):
            pass

    return [("bare row-group read", "clips/s", rate(256, bare)), ("training feed", "clips/s", rate(256, fed))]


def pack_rows(folder: Path) -> list[tuple[str, str, tuple[float, float, float]]]:
    """Writing a shard of 256 clips, eight from each file of pixels; by the processor's time, for it has threads."""
    config, files = VideoConfig(), 32
    clip = np.stack(
        [cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in draw_clip("Circle", num_frames=32).frames]
    )
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 4, clip.shape), 0, 255).astype(np.uint8)
    for n in range(files):
        (folder / f"{n}.frames").write_bytes(noisy.tobytes() * 8)
    made = Clip(start_s=0, shot=0, frames=noisy, evidence=ClipScores())
    place = [{"data": f"{n // 8}.frames", "row": n % 8, "crc32": zlib.crc32(noisy.tobytes())} for n in range(8 * files)]
    clips = [clip_row(made, clip_id=str(n), **IDS) | at for n, at in enumerate(place)]
    for row in clips:
        del row["frames"]
    chosen = pa.Table.from_pylist(clips)

    def packed(codec: str) -> tuple[float, float, float]:
        return rate(
            8 * files, lambda: write_shard(chosen, str(folder), "packed.parquet", config, codec), time.process_time
        )

    return [("pack, raw", "clips/s", packed("raw")), ("pack, codec=jpeg", "clips/s", packed("jpeg"))]


OBJECTIVE = ObjectiveConfig()


def step_rows() -> list[tuple[str, str, tuple[float, float, float]]]:
    """One update of both networks, in fp32 and under bf16 autocast."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training worker does
    rows = []
    for base, batch in ((8, 8), (16, 8), (64, 2)):
        model = ModelConfig(base_width=base)
        for precision in (torch.float32, torch.bfloat16):
            networks = make_networks(model)
            engines = {n: LocalEngine(net, make_optimizer(n, net, OBJECTIVE)) for n, net in networks.items()}
            real, draws = torch.rand(batch, 3, 32, 64, 64) * 2 - 1, StepRandomness.of_step(0, 1, batch, model.z_size)

            def step(engines=engines, real=real, draws=draws, model=model, precision=precision) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                    train_step(engines, real, draws, model, OBJECTIVE)

            rows.append((f"GAN step, base {base}, {str(precision)[6:]}", "clips/s", rate(batch, step)))
    return rows


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a child's work counts as its parent's does
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = video_rows(folder) + reader_rows(folder) + pack_rows(folder) + step_rows()
    print(f"one core, {REPEATS} runs each, {platform.machine()}, torch {torch.__version__}, {asdict(ClipSpec())}")
    print(f"{'stage':<34}{'unit':<10}{'lowest':>10}{'median':>10}{'highest':>10}")
    for name, unit, (low, median, high) in rows:
        print(f"{name:<34}{unit:<10}{low:>10.1f}{median:>10.1f}{high:>10.1f}")


if __name__ == "__main__":
    main()
