"""Cost model of preparing a corpus and training on it: hours, bytes, requests, money, and the limit of each stage.

The time of a stage is the larger of its computation, at a measured rate per core or GPU, and its transfer over the
network. Unmeasured rates are marked "assumed".
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.planning.config import CorpusConfig, MeasuredRates, NodeConfig, PriceConfig
from cluster.sources.flickr import PER_PAGE
from cluster.sources.manifest import read_sources
from cluster.storage.files import exists, read_bytes
from vgan.errors import InputError

HOUR, GB = 3600.0, 1e9
CLIP_FRAMES, CLIP_FPS = 32, 25.0  # of the default ClipSpec
CLIP_S = CLIP_FRAMES / CLIP_FPS
RAW_CLIP = CLIP_FRAMES * 64 * 64 * 3
CAP_S = 100 * CLIP_S  # clip.max_per_video: longer videos are decoded up to here
RECORD_KB_PER_CLIP = 0.6  # of commit records


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Videos to prepare."""

    videos: int
    hours: float  # of source video
    usable_hours: float  # part of them that is decoded, within the maximum of clips per video
    bytes: float
    told: str  # source of the figures


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage on the given cluster."""

    name: str
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    wall_hours: float = 0.0
    limit: str = ""  # limiting resource


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """Expected costs of all stages. Money is listed by item, in the currency of the prices."""

    corpus: Corpus
    clips: int
    clip_hours: float
    stages: list[StageCost]
    storage_gb: dict[str, float]
    requests: dict[str, int]
    money: dict[str, float]
    currency: str
    limits: str
    remarks: list[str]
    rates: MeasuredRates
    settings: dict[str, Any] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """Sum core_hours, gpu_hours or wall_hours over the stages."""
        return sum(getattr(stage, name) for stage in self.stages)


def corpus_for_hours(hours: float, config: CorpusConfig, rates: MeasuredRates) -> Corpus:
    """Estimate the corpus of videos needed for a number of hours of clips."""
    usable_s = min(config.video_s, CAP_S)
    videos = math.ceil(hours * HOUR / (usable_s * rates.clip_yield))
    return _corpus(videos, config, told=f"{hours:,.0f} hours of clips wanted")


def _corpus(videos: int, config: CorpusConfig, told: str) -> Corpus:
    hours = videos * config.video_s / HOUR
    usable = videos * min(config.video_s, CAP_S) / HOUR
    return Corpus(
        videos=videos, hours=hours, usable_hours=usable, bytes=hours * HOUR * config.mbit * 1e6 / 8, told=told
    )


def corpus_from_manifest(url: str, config: CorpusConfig) -> Corpus:
    """Describe the videos of a sources manifest; missing lengths and sizes are extrapolated or taken from `config`.

    Raises:
        InputError: the manifest lists no video.
    """
    if url.endswith(".parquet") and exists(url):
        table = pq.read_table(io.BytesIO(read_bytes(url)), columns=["bytes", "duration_s"])
    else:
        rows = [{"bytes": s.bytes, "duration_s": s.duration_s} for s in read_sources(url)]
        table = pa.Table.from_pylist(rows, pa.schema([("bytes", pa.int64()), ("duration_s", pa.float64())]))
    videos = table.num_rows
    if not videos:
        raise InputError(f"no video in {url!r}")
    sized, timed = videos - table["bytes"].null_count, videos - table["duration_s"].null_count
    total = (pc.sum(table["bytes"]).as_py() or 0) * videos / max(1, sized)
    if timed:
        share = videos / timed
        hours = pc.sum(table["duration_s"]).as_py() * share / HOUR
        usable = pc.sum(pc.min_element_wise(table["duration_s"], CAP_S, skip_nulls=False)).as_py() * share / HOUR
    elif sized:
        hours = total * 8 / (config.mbit * 1e6) / HOUR
        usable = min(hours, videos * CAP_S / HOUR)
    else:
        return replace(_corpus(videos, config, url), told=f"{url}: lengths and sizes assumed")
    known = f"{timed} lengths and {sized} sizes of {videos} known"
    size = total or hours * HOUR * config.mbit * 1e6 / 8
    return Corpus(videos=videos, hours=hours, usable_hours=usable, bytes=size, told=f"{url}: {known}")


def estimate_cost(
    corpus: Corpus,
    config: CorpusConfig,
    rates: MeasuredRates,
    cpu: NodeConfig,
    gpu: NodeConfig,
    prices: PriceConfig,
    *,
    steps: int,
    batch_size: int,
    codec: str,
    prepare_s: float = 0.0,
) -> CostPlan:
    """Plan the preparation of a corpus on `cpu` nodes and training on `gpu` nodes.

    Args:
        corpus: the videos.
        config: properties of the videos.
        rates: measured rates per core or GPU.
        cpu: nodes for preparation.
        gpu: nodes for training.
        prices: prices of the store.
        steps: training steps; 0 plans no training.
        batch_size: clips per step over all workers.
        codec: codec of the shards, raw or jpeg.
        prepare_s: measured core-seconds per second of video for all of prepare; 0: use the rates of the stages.

    Raises:
        InputError: training is planned on nodes without GPUs.
    """
    clips = int(corpus.usable_hours * HOUR / CLIP_S * rates.clip_yield)
    clip_bytes = RAW_CLIP if codec == "raw" else rates.jpeg_clip_bytes
    work_gb, shard_gb = clips * RAW_CLIP / GB, clips * clip_bytes / GB
    stages = _acquiring(corpus, config) + _preparing(corpus, config, rates, cpu, work_gb, prepare_s)
    stages += _packing(clips, rates, cpu, work_gb + shard_gb)
    if steps:
        stages.append(_training(steps, batch_size, rates, gpu, codec, clip_bytes))
    requests = _requests(corpus, config, clips, work_gb, steps * batch_size)
    longest = max(stages, key=lambda stage: stage.wall_hours)
    return CostPlan(
        corpus=corpus,
        clips=clips,
        clip_hours=clips * CLIP_S / HOUR,
        stages=stages,
        storage_gb={
            "work (removable once packed)": work_gb,
            "shards": shard_gb,
            "records": clips * RECORD_KB_PER_CLIP / 1e6,
        },
        requests=requests,
        money=_money(corpus, stages, cpu, gpu, prices, work_gb + shard_gb, requests),
        currency=prices.currency,
        limits=f"{longest.name}: {longest.wall_hours:,.1f} h, limited by {longest.limit}",
        remarks=_remarks(rates, gpu, steps, prepare_s),
        rates=rates,
    )


def _requests(corpus: Corpus, config: CorpusConfig, clips: int, work_gb: float, trained_clips: int) -> dict[str, int]:
    """Count the requests to Flickr and to the store; raw work files are packed into shards of 400 MB."""
    from_flickr = config.origin == "flickr"
    return {
        "Flickr API": corpus.videos + math.ceil(corpus.videos / PER_PAGE) if from_flickr else 0,
        "reading": 2 * corpus.videos + clips + math.ceil(trained_clips / 64),
        "writing": 2 * corpus.videos + math.ceil(work_gb * 1000 / 400),
    }


def _money(
    corpus: Corpus,
    stages: list[StageCost],
    cpu: NodeConfig,
    gpu: NodeConfig,
    prices: PriceConfig,
    stored_gb: float,
    requests: dict[str, int],
) -> dict[str, float]:
    """Return the cost of nodes, transfer, storage and requests, in `prices.currency`."""
    hours = {stage.name: stage.wall_hours for stage in stages}
    preparing = sum(hours.get(name, 0.0) for name in ("decode", "stabilize", "pack"))
    return {
        "preparing nodes": preparing * cpu.count * cpu.price,
        "training nodes": hours.get("train", 0.0) * gpu.count * gpu.price,
        "fetching": corpus.bytes / GB * prices.gb_in,
        "storage": stored_gb * prices.gb_month * prices.months,
        "requests": (requests["reading"] * prices.gets + requests["writing"] * prices.puts) / 1000,
    }


def _remarks(rates: MeasuredRates, gpu: NodeConfig, steps: int, prepare_s: float) -> list[str]:
    """List where the rates come from and what was assumed."""
    remarks = [f"rates of {rates.date}: {rates.machine}", f"yield {rates.clip_yield:.0%} of the windows"]
    if steps and not rates.gpu_clips_per_s:
        remarks.append(f"no GPU was measured: {rates.gpu_share_of_peak:.0%} of {gpu.tflops:g} TFLOP/s assumed")
    if prepare_s:
        remarks.append(f"prepare takes {prepare_s:.3f} core-seconds per second of video, as measured in full runs")
    return remarks


def _acquiring(corpus: Corpus, config: CorpusConfig) -> list[StageCost]:
    if config.origin != "flickr":
        return []
    calls = corpus.videos * (1 + 1 / PER_PAGE)
    limit = f"Flickr's {config.calls_per_hour:,} calls per hour and key"
    return [StageCost(name="acquire", wall_hours=calls / config.calls_per_hour, limit=limit)]


def _preparing(
    corpus: Corpus, config: CorpusConfig, rates: MeasuredRates, cpu: NodeConfig, work_gb: float, prepare_s: float
) -> list[StageCost]:
    """Return the decode and stabilize stages, which one task does; the larger of computing and transfer time counts."""
    seconds = corpus.usable_hours * HOUR
    pixels = seconds * config.fps * config.width * config.height
    costs = {
        "decode": pixels / (rates.decode_mpixels_per_s * 1e6) / rates.prepare_efficiency,
        "stabilize": seconds * CLIP_FPS / rates.stabilize_frames_per_s / rates.prepare_efficiency,
    }
    scale = prepare_s * seconds / sum(costs.values()) if prepare_s else 1.0
    cores = cpu.count * cpu.cores
    moved_s = (corpus.bytes + work_gb * GB) * 8 / (cpu.count * cpu.gbit * 1e9)
    computed_s = scale * sum(costs.values()) / cores
    limit = f"{cores} cores" if computed_s >= moved_s else f"{cpu.count} x {cpu.gbit:g} Gbit/s"
    share = max(computed_s, moved_s) / computed_s
    return [
        StageCost(name=name, core_hours=scale * s / HOUR, wall_hours=scale * s / HOUR / cores * share, limit=limit)
        for name, s in costs.items()
    ]


def _packing(clips: int, rates: MeasuredRates, cpu: NodeConfig, moved_gb: float) -> list[StageCost]:
    core_s = clips / rates.pack_clips_per_s
    computed_s, moved_s = core_s / (cpu.count * cpu.cores), moved_gb * 8 / (cpu.count * cpu.gbit)
    limit = f"{cpu.count * cpu.cores} cores" if computed_s > moved_s else f"{cpu.count} x {cpu.gbit:g} Gbit/s"
    return [StageCost(name="pack", core_hours=core_s / HOUR, wall_hours=max(computed_s, moved_s) / HOUR, limit=limit)]


def _training(
    steps: int, batch_size: int, rates: MeasuredRates, gpu: NodeConfig, codec: str, clip_bytes: float
) -> StageCost:
    if not gpu.gpus:
        raise InputError(f"steps={steps} needs gpu.gpus= of at least 1; the planner does not support training on CPUs")
    workers, clips = gpu.count * gpu.gpus, steps * batch_size
    speed = rates.gpu_clips_per_s or gpu.tflops * 1000 * rates.gpu_share_of_peak / rates.gflop_per_clip
    feed = rates.feed_clips_per_s if codec == "raw" else rates.feed_jpeg_clips_per_s
    times = {
        f"{workers} GPUs": clips / (speed * workers),
        f"the feed of {workers} workers": clips / (feed * workers),
        f"{gpu.count} x {gpu.gbit:g} Gbit/s": clips * clip_bytes * 8 / (gpu.count * gpu.gbit * 1e9),
    }
    limit = max(times, key=times.__getitem__)
    wall_h = times[limit] / HOUR
    return StageCost(name="train", gpu_hours=wall_h * workers, wall_hours=wall_h, limit=limit)
