"""Settings of a cost plan: corpus, nodes, prices and measured rates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from cluster.dataset.codecs import CODECS
from vgan.options import check_choice, option, section


@dataclass(frozen=True, kw_only=True)
class MeasuredRates:
    """Measured rates, per core unless stated otherwise. The defaults are those of the README (Measured)."""

    date: str = "2026-12-01"
    machine: str = "virtual machine, 2 cores of an AMD EPYC (Zen 5), no GPU"
    decode_mpixels_per_s: float = (
        1173 * 640 * 360 / 1e6
    )  # 1,173 frames/s of 640x360 H.264 in a child process of a worker
    # At 128 px, with cuts and scores: 373 of preset=paper, times 1.6, the ratio of adaptive to it on real videos.
    stabilize_frames_per_s: float = 597.0
    prepare_efficiency: float = 0.86  # jobs.prepare relative to plain processes, lowest of four (2026-11-28)
    pack_clips_per_s: float = 779.0  # per second of CPU time; 613 for JPEGs
    # Share of windows accepted, ordinary web video; 0.91 with filters.preset=paper, 0.76 for UCF101, 0.97 in the paper.
    clip_yield: float = 0.67
    jpeg_clip_bytes: float = 84_000.0  # UCF101 at codec=jpeg
    feed_clips_per_s: float = 9252.0  # reader of one worker, codec=raw
    feed_jpeg_clips_per_s: float = 722.0  # the same for codec=jpeg, four threads on two cores
    gflop_per_clip: float = 50.0  # training step of both networks at base width 64
    gpu_clips_per_s: float = 0.0  # training throughput of jobs.train on one GPU; 0: not measured, see gpu_share_of_peak
    gpu_share_of_peak: float = 0.25  # assumed share of peak FLOP/s, used if gpu_clips_per_s is 0

    def __post_init__(self) -> None:
        for rate in fields(self):
            value = getattr(self, rate.name)
            if rate.type != "str" and (not isinstance(value, int | float) or not math.isfinite(value) or value < 0):
                raise ValueError(f"{rate.name} must be a number of 0 or more, got {value!r}")
            if value == 0 and rate.name != "gpu_clips_per_s":
                raise ValueError(f"{rate.name} must be above 0")


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Nodes of one type."""

    count: int = option(1, "number of nodes")
    cores: int = option(32, "CPU cores per node")
    gpus: int = option(0, "GPUs per node")
    tflops: float = option(100.0, "peak speed per GPU at the precision used, 10^12 FLOP/s")
    gbit: float = option(10.0, "network bandwidth per node to the store, Gbit/s")
    price: float = option(0.0, "price per node-hour")

    def __post_init__(self) -> None:
        if self.count < 1 or self.cores < 1 or self.gpus < 0 or min(self.tflops, self.gbit) <= 0 or self.price < 0:
            raise ValueError(f"nodes need count and cores of at least 1, gbit and tflops above 0; got {asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """Prices of a store. All default to 0, as prices differ and change."""

    currency: str = option("USD", "currency of all prices")
    gb_month: float = option(0.0, "price of storing 10^9 bytes for a month")
    gb_in: float = option(0.0, "price of fetching 10^9 bytes from the source of the videos")
    gets: float = option(0.0, "price of 1,000 read requests")
    puts: float = option(0.0, "price of 1,000 write requests")
    months: float = option(1.0, "storage time of the dataset, months")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Properties of the videos, used where a sources manifest does not give them."""

    origin: str = option(
        "", "source of the videos; flickr: count its API calls too; empty: the videos are listed already"
    )
    video_s: float = option(37.0, "mean length of a video, seconds (YFCC100M's)")
    width: int = option(640, "frame width, pixels")
    height: int = option(360, "frame height, pixels")
    fps: float = option(30.0, "frame rate, frames per second")
    mbit: float = option(1.0, "bit rate, 10^6 bits per second")
    calls_per_hour: int = option(3500, "limit of calls per hour to Flickr's API with one key")

    def __post_init__(self) -> None:
        check_choice("corpus.origin", self.origin, ("", "flickr"))
        if min(self.video_s, self.width, self.height, self.fps, self.mbit, self.calls_per_hour) <= 0:
            raise ValueError(f"corpus settings must be above 0, got {asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of a cost plan: size of the corpus (hours= or sources=), training, nodes and prices."""

    hours: float = option(0.0, "hours of finished clips to plan for", "common")
    sources: str = option("", "URL of a sources manifest, list, folder or glob, instead of hours=", "common")
    rates_file: str = option(
        "", "URL of a JSON file of measured rates with date and machine; empty: those of the README"
    )
    calibrate_from: str = option(
        "", "URL of a dataset whose commit records give cost and yield of prepare; empty: none", "common"
    )
    steps: int = option(0, "training steps; 0: no training", "common")
    batch_size: int = option(64, "clips per training step, summed over all workers")
    codec: str = option("raw", "encoding of frames in shards: raw or jpeg")
    out: str = option("out/plan", "URL of the folder for plan.json and plan.png", "common")
    corpus: CorpusConfig = section(CorpusConfig, "properties of the videos that the sources manifest does not give")
    cpu: NodeConfig = section(NodeConfig, "nodes for preparation")
    gpu: NodeConfig = section(lambda: NodeConfig(gpus=1), "nodes for training")
    prices: PriceConfig = section(PriceConfig, "prices of the store")

    def __post_init__(self) -> None:
        check_choice("codec", self.codec, CODECS)
        if self.hours < 0 or self.steps < 0 or self.batch_size < 1:
            got = f"got {self.hours}, {self.steps} and {self.batch_size}"
            raise ValueError(f"hours and steps must be at least 0, batch_size at least 1, {got}")
