"""Settings of a cost plan: corpus, nodes, prices and measured rates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from cluster.storage.files import exists, read_json
from vgan.errors import InputError
from vgan.options import check_choice, option


@dataclass(frozen=True, kw_only=True)
class MeasuredRates:
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


def read_rates(url: str) -> MeasuredRates:
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
        return MeasuredRates(**values)
    except (ValueError, TypeError) as fault:
        raise InputError(
            f"{url!r} does not hold rates: {fault}; names are {', '.join(asdict(MeasuredRates()))}"
        ) from fault
