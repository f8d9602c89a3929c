"""What a corpus and a training on it will cost: hours, bytes, requests, money, and what limits each stage.

A plain model: every stage does so much work at a measured rate, on so many cores or GPUs, and moves so many bytes over
so wide a network; the slower of the two is its time. What was never measured is said to be assumed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.dataset.manifest import MANIFEST, read_manifest
from cluster.prepare.ledger import Ledger, read_records
from cluster.prepare.status import dataset_status
from cluster.sources.flickr import PER_PAGE
from cluster.sources.manifest import read_sources
from cluster.storage.files import exists, read_bytes, read_json
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.options import check_choice, option

HOUR, GB = 3600.0, 1e9
CLIP_FRAMES, CLIP_FPS = 32, 25.0  # of the default ClipSpec
CLIP_S = CLIP_FRAMES / CLIP_FPS
RAW_CLIP = CLIP_FRAMES * 64 * 64 * 3
CAP_S = 100 * CLIP_S  # clip.max_per_video: of longer videos no more is decoded
RECORD_KB_PER_CLIP = 0.6  # of a commit record


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured rates, of one core unless it says otherwise. The defaults are the README's (Measured)."""

    date: str = "2026-11-29"
    machine: str = "virtual machine, 2 cores of an AMD EPYC (Zen 5), no GPU"
    decode_mpixels_per_s: float = 1173 * 640 * 360 / 1e6  # 1,173 frames/s of 640x360 H.264 in a worker's child
    stabilize_frames_per_s: float = 373.0  # at 128 px, with cuts and scores
    prepare_efficiency: float = 0.86  # jobs.prepare over plain processes, lowest of four (2026-11-28)
    pack_clips_per_s: float = 779.0  # by the processor's time; JPEGs 613
    clip_yield: float = 0.60  # share of windows kept, ordinary web video; 0.68 of UCF101; the paper says 0.97
    jpeg_clip_bytes: float = 84_000.0  # of UCF101 at codec=jpeg
    feed_clips_per_s: float = 9252.0  # one worker's reader, raw
    feed_jpeg_clips_per_s: float = 722.0  # the same of JPEGs, four threads on two cores
    gflop_per_clip: float = 50.0  # of a step of both networks at base 64
    gpu_clips_per_s: float = 0.0  # a step of jobs.train on one GPU; 0: not measured, see gpu_share_of_peak
    gpu_share_of_peak: float = 0.25  # assumed where gpu_clips_per_s is 0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type != "str" and (not isinstance(value, int | float) or not math.isfinite(value) or value < 0):
                raise ValueError(f"{each.name} must be a number of 0 or more, got {value!r}")
            if value == 0 and each.name != "gpu_clips_per_s":
                raise ValueError(f"{each.name} must be above 0")


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Nodes of one type."""

    count: int = option(1, "nodes")
    cores: int = option(32, "cores of a node")
    gpus: int = option(0, "GPUs of a node")
    tflops: float = option(100.0, "peak of a GPU at the precision used, 10^12 operations a second")
    gbit: float = option(10.0, "network of a node to the store, Gbit/s")
    price: float = option(0.0, "of a node-hour")

    def __post_init__(self) -> None:
        if self.count < 1 or self.cores < 1 or self.gpus < 0 or min(self.tflops, self.gbit) <= 0 or self.price < 0:
            raise ValueError(f"nodes need count and cores of at least 1, gbit and tflops above 0; got {asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """What a store charges. All 0 until given: prices differ and change."""

    currency: str = option("USD", "name of the money")
    gb_month: float = option(0.0, "of 10^9 bytes kept for a month")
    gb_in: float = option(0.0, "of 10^9 bytes fetched from where the videos are")
    gets: float = option(0.0, "of 1,000 reading requests")
    puts: float = option(0.0, "of 1,000 writing requests")
    months: float = option(1.0, "for which the dataset is kept")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What the videos are like, where no manifest tells."""

    origin: str = option("", "flickr: count its API's calls too; empty: the videos are listed already")
    video_s: float = option(37.0, "mean length of a video, seconds (YFCC100M's)")
    width: int = option(640, "of a frame, pixels")
    height: int = option(360, "of a frame, pixels")
    fps: float = option(30.0, "frames a second")
    mbit: float = option(1.0, "of a second of video, 10^6 bits")
    calls_per_hour: int = option(3500, "of Flickr's API, one key")

    def __post_init__(self) -> None:
        check_choice("corpus.origin", self.origin, ("", "flickr"))
        if min(self.video_s, self.width, self.height, self.fps, self.mbit, self.calls_per_hour) <= 0:
            raise ValueError(f"corpus settings must be above 0, got {asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The videos to prepare."""

    videos: int
    hours: float  # of source video
    usable_hours: float  # of them, within the cap of clips a video: what is decoded
    bytes: float
    told: str  # where the figures are from


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on the given cluster."""

    name: str
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    wall_hours: float = 0.0
    limit: str = ""  # what it waits for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to be expected. Money by item, in the currency of the prices."""

    corpus: Corpus
    clips: int
    clip_hours: float
    stages: list[Stage]
    storage_gb: dict[str, float]
    requests: dict[str, int]
    money: dict[str, float]
    currency: str
    limits: str
    remarks: list[str]
    rates: Rates
    settings: dict[str, Any] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """Sum over the stages of core_hours, gpu_hours or wall_hours."""
        return sum(getattr(stage, name) for stage in self.stages)


def read_rates(url: str) -> Rates:
    """Rates from a JSON file; those it does not name are the README's.

    Raises:
        InputError: no such file, not JSON, an unknown name, or without date and machine.
    """
    if not exists(url):
        raise InputError(f"no rates at {url!r}")
    try:
        values = read_json(url)
        if not isinstance(values, dict) or not {"date", "machine"} <= set(values):
            raise ValueError("rates are an object with `date` and `machine`, for rates of nowhere mean nothing")
        return Rates(**values)
    except (ValueError, TypeError) as fault:
        raise InputError(f"{url!r} does not hold rates: {fault}; names are {', '.join(asdict(Rates()))}") from fault


def wanted(hours: float, config: CorpusConfig, rates: Rates) -> Corpus:
    """The videos that it takes to get so many hours of clips."""
    usable_s = min(config.video_s, CAP_S)
    videos = math.ceil(hours * HOUR / (usable_s * rates.clip_yield))
    return _corpus(videos, config, told=f"{hours:,.0f} hours of clips wanted")


def _corpus(videos: int, config: CorpusConfig, told: str) -> Corpus:
    hours = videos * config.video_s / HOUR
    usable = videos * min(config.video_s, CAP_S) / HOUR
    return Corpus(
        videos=videos, hours=hours, usable_hours=usable, bytes=hours * HOUR * config.mbit * 1e6 / 8, told=told
    )


def listed(url: str, config: CorpusConfig) -> Corpus:
    """The videos of a sources manifest; lengths and sizes that it does not tell are taken from `config`."""
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


def plan(
    corpus: Corpus,
    config: CorpusConfig,
    rates: Rates,
    cpu: NodeConfig,
    gpu: NodeConfig,
    prices: PriceConfig,
    *,
    steps: int,
    batch_size: int,
    codec: str,
    prepare_s: float = 0.0,
) -> Plan:
    """What it takes to prepare a corpus on `cpu` nodes and to train for some steps on `gpu` nodes.

    Args:
        corpus: the videos.
        config: their pictures.
        rates: how fast one core or GPU is.
        cpu: nodes that prepare.
        gpu: nodes that train.
        prices: of the store.
        steps: of training; 0 plans none.
        batch_size: global.
        codec: of the shards.
        prepare_s: core-seconds a second of video, where they were measured as a whole; 0 takes the stages' rates.
    """
    clips = int(corpus.usable_hours * HOUR / CLIP_S * rates.clip_yield)
    clip_bytes = RAW_CLIP if codec == "raw" else rates.jpeg_clip_bytes
    work_gb, shard_gb = clips * RAW_CLIP / GB, clips * clip_bytes / GB
    stages = _acquiring(corpus, config) + _preparing(corpus, config, rates, cpu, work_gb, prepare_s)
    stages += _packing(clips, rates, cpu, work_gb + shard_gb)
    remarks = [f"rates of {rates.date}: {rates.machine}", f"yield {rates.clip_yield:.0%} of the windows"]
    if steps:
        stages.append(_training(steps, batch_size, rates, gpu, codec, clip_bytes))
        if not rates.gpu_clips_per_s:
            remarks.append(f"no GPU was measured: {rates.gpu_share_of_peak:.0%} of {gpu.tflops:g} TFLOP/s assumed")
    if prepare_s:
        remarks.append(f"prepare takes {prepare_s:.3f} core-seconds a second of video, as measured in whole runs")
    shards = math.ceil(work_gb * 1000 / 400)
    pages = math.ceil(corpus.videos / PER_PAGE) if config.origin == "flickr" else 0
    requests = {
        "Flickr API": corpus.videos + pages if config.origin == "flickr" else 0,
        "reading": 2 * corpus.videos + clips + math.ceil(steps * batch_size / 64),
        "writing": 2 * corpus.videos + shards,
    }
    by_name = {stage.name: stage for stage in stages}
    busy = sum(by_name[name].wall_hours for name in ("decode", "stabilize", "pack") if name in by_name)
    kept_gb = work_gb + shard_gb
    money = {
        "preparing nodes": busy * cpu.count * cpu.price,
        "training nodes": by_name["train"].wall_hours * gpu.count * gpu.price if steps else 0.0,
        "fetching": corpus.bytes / GB * prices.gb_in,
        "storage": kept_gb * prices.gb_month * prices.months,
        "requests": (requests["reading"] * prices.gets + requests["writing"] * prices.puts) / 1000,
    }
    longest = max(stages, key=lambda stage: stage.wall_hours)
    return Plan(
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
        money=money,
        currency=prices.currency,
        limits=f"{longest.name}: {longest.wall_hours:,.1f} h, waits for {longest.limit}",
        remarks=remarks,
        rates=rates,
    )


def _acquiring(corpus: Corpus, config: CorpusConfig) -> list[Stage]:
    if config.origin != "flickr":
        return []
    calls = corpus.videos * (1 + 1 / PER_PAGE)
    limit = f"Flickr's {config.calls_per_hour:,} calls an hour a key"
    return [Stage(name="acquire", wall_hours=calls / config.calls_per_hour, limit=limit)]


def _preparing(
    corpus: Corpus, config: CorpusConfig, rates: Rates, cpu: NodeConfig, work_gb: float, prepare_s: float
) -> list[Stage]:
    """Decoding and stabilization, which one task does; the network's time goes to the first."""
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
        Stage(name=name, core_hours=scale * s / HOUR, wall_hours=scale * s / HOUR / cores * share, limit=limit)
        for name, s in costs.items()
    ]


def _packing(clips: int, rates: Rates, cpu: NodeConfig, moved_gb: float) -> list[Stage]:
    core_s = clips / rates.pack_clips_per_s
    computed_s, moved_s = core_s / (cpu.count * cpu.cores), moved_gb * 8 / (cpu.count * cpu.gbit)
    limit = f"{cpu.count * cpu.cores} cores" if computed_s > moved_s else f"{cpu.count} x {cpu.gbit:g} Gbit/s"
    return [Stage(name="pack", core_hours=core_s / HOUR, wall_hours=max(computed_s, moved_s) / HOUR, limit=limit)]


def _training(steps: int, batch_size: int, rates: Rates, gpu: NodeConfig, codec: str, clip_bytes: float) -> Stage:
    if not gpu.gpus:
        raise InputError(f"steps={steps} needs gpu.gpus= of at least 1; training on CPUs is not planned")
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
    return Stage(name="train", gpu_hours=wall_h * workers, wall_hours=wall_h, limit=limit)


# ---- against real runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A real preparation beside the model's word for the same videos."""

    source_hours: float
    core_s: float  # as the commit records tell
    planned_s: float
    clip_yield: float  # after the gates where the dataset is packed, else before them

    @property
    def error(self) -> float:
        """Planned over measured, minus 1."""
        return self.planned_s / self.core_s - 1

    @property
    def prepare_s(self) -> float:
        """Core-seconds a second of video."""
        return self.core_s / (self.source_hours * HOUR)


def check(out: str, rates: Rates) -> Checked:
    """What a dataset's commit records tell of its cost, and what the rates say of its videos' lengths and windows."""
    dataset_status(out)  # says so if there is nothing
    ledger = Ledger.read(out)
    records = [r for r in read_records(ledger.commit_urls(ledger.all_videos())) if r["probe"] and r["source_s"]]
    if not records:
        raise InputError(f"no video of {out!r} was decoded: it tells no rates")
    planned_s = sum(_planned(record, rates) for record in records)
    windows = sum(map(_windows, records))
    clips = sum(len(r["clips"].get("clip_id", ())) for r in records)
    if exists(join_url(out, MANIFEST)):  # after the gates; records know of what came before them only
        counts = read_manifest(out).counts
        clips, windows = counts["clips"], counts["windows"]
    return Checked(
        source_hours=sum(r["source_s"] for r in records) / HOUR,
        core_s=sum(r["seconds"] for r in records),
        planned_s=planned_s,
        clip_yield=clips / windows if windows else 0.0,
    )


def _windows(record: dict[str, Any]) -> int:
    """Windows that became clips or were turned away."""
    turned_away = sum(reject["start_s"] is not None and reject["stage"] != "shots" for reject in record["rejects"])
    return len(record["clips"].get("clip_id", ())) + turned_away


def _planned(record: dict[str, Any], rates: Rates) -> float:
    """Core-seconds by the rates. Windows, taken to have 32 frames, are counted: `plan` has them end to end."""
    probe, seconds = record["probe"], record["source_s"]
    pixels = seconds * (probe["fps"] or CLIP_FPS) * probe["width"] * probe["height"]
    decode_s = pixels / (rates.decode_mpixels_per_s * 1e6)
    stabilize_s = _windows(record) * CLIP_FRAMES / rates.stabilize_frames_per_s
    return (decode_s + stabilize_s) / rates.prepare_efficiency


def plan_text(found: Plan) -> str:
    """The plan as a table."""
    corpus = found.corpus
    lines = [
        f"{corpus.videos:,} videos, {corpus.hours:,.0f} h, {corpus.bytes / 1e12:,.3f} TB in ({corpus.told})",
        f"-> {found.clips:,} clips, {found.clip_hours:,.0f} h",
        "",
        f"{'stage':<12}{'core-hours':>12}{'GPU-hours':>12}{'wall hours':>12}  waits for",
        *(
            f"{s.name:<12}{s.core_hours:>12,.1f}{s.gpu_hours:>12,.1f}{s.wall_hours:>12,.1f}  {s.limit}"
            for s in found.stages
        ),
        f"{'all':<12}" + "".join(f"{found.total(f'{kind}_hours'):>12,.1f}" for kind in ("core", "gpu", "wall")),
        "",
        *_amounts("storage", found.storage_gb, "GB"),
        *_amounts("requests", found.requests, ""),
        *_amounts("money", found.money | {"all": sum(found.money.values())}, found.currency),
        "",
        f"what limits: {found.limits}",
        *found.remarks,
    ]
    return "\n".join(lines)


def _amounts(title: str, values: dict[str, Any], unit: str) -> Sequence[str]:
    return [f"{title + ', ' + name:<42}{value:>16,.0f} {unit}".rstrip() for name, value in values.items()]
