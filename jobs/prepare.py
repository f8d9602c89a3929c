"""Turn videos into a sharded dataset of stabilized clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cluster import storage
from cluster.ingest import prepare
from cluster.runs import flatten, public_settings
from cluster.session import ray_session
from cluster.shards import Manifest
from cluster.sources import read_sources
from cluster.tracking import Tracker, TrackingConfig
from jobs import command
from vgan.config import ClipSpec, DecodeConfig, ShotConfig, StabilizeConfig, VideoConfig, option, section
from vgan.errors import BadInput

ABOUT = """Decode, cut into shots, stabilize and pack videos into a dataset. Interrupted, run it again: it goes on.

  python -m jobs.prepare sources=out/sources.parquet out=out/clips
  python -m jobs.prepare sources=/videos out=s3://bucket/clips stabilize.preset=off
"""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """One dataset."""

    sources: str = option("", "manifest (.parquet, .csv, .txt), folder or glob of videos (required)")
    out: str = option("out/clips", "url of the dataset's folder")
    max_reject_fraction: float = option(1.0, "fail if a larger share of the videos is rejected, 0..1")
    shard_mb: int = option(400, "raw size of a shard, MB")
    replace: bool = option(False, "replace a finished dataset of other sources, seed or shard size")
    seed: int = option(0, "of the shuffle into shards")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    clip: ClipSpec = section(ClipSpec, "shape of a clip")
    decode: DecodeConfig = section(DecodeConfig, "file to frames")
    shots: ShotConfig = section(ShotConfig, "frames to shots")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        if self.shard_mb < 1:
            raise ValueError(f"shard_mb must be at least 1, got {self.shard_mb}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must be in 0..1, got {self.max_reject_fraction}")


def main(config: PrepareConfig) -> None:
    """Prepare the dataset, log its counts, print them."""
    command.require(config, "sources", "out")
    out = storage.absolute(config.out)
    sources = read_sources(storage.absolute(config.sources))
    video = VideoConfig(clip=config.clip, decode=config.decode, shots=config.shots, stabilize=config.stabilize)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "prepare")
    tracker.experiment_id()  # a tracking server that cannot be used is told before the work, not after
    storage.make_folder(out)
    with ray_session(config.address):
        manifest = prepare(sources, out, video, seed=config.seed, shard_mb=config.shard_mb, replace=config.replace)
    command.save(config, storage.join(out, "settings.yaml"))
    track(tracker, config, manifest, out)
    print(summary(manifest, out))
    rejected = manifest.counts["rejected"] / manifest.counts["sources"]
    if rejected > config.max_reject_fraction:
        raise BadInput(
            f"{rejected:.0%} of the videos were rejected, more than max_reject_fraction={config.max_reject_fraction}"
        )


def track(tracker: Tracker, config: PrepareConfig, manifest: Manifest, out: str) -> None:
    """One MLflow run for the dataset, found again by its digest."""
    tags = {"dataset_hash": manifest.digest, "dataset_url": out, "git_commit": manifest.git_commit}
    run = tracker.start(
        f"prepare-{manifest.digest}", name="prepare", params=flatten(public_settings(config)), tags=tags
    )
    counts = {f"counts/{k}": v for k, v in manifest.counts.items() if not isinstance(v, dict)}
    reasons = {f"rejects/{k}": v for k, v in manifest.counts["segments_rejected_by_reason"].items()}
    with run.ending():
        run.dataset(name="clips", digest=manifest.digest, url=out, context="prepare")
        run.metrics(counts | reasons)
        run.text(storage.json_bytes(asdict(manifest)).decode(), "manifest.json")


def summary(manifest: Manifest, out: str) -> str:
    """What a person wants to know when it is over; the sum of sources comes first."""
    c = manifest.counts
    lines = [
        f"sources = accepted + rejected: {c['sources']} = {c['accepted']} + {c['rejected']}",
        *(f"  {n} rejected: {reason}" for reason, n in c["rejected_by_reason"].items()),
        f"clips: {c['clips']} in {len(manifest.shards)} shards; stretches of video rejected: {c['segments_rejected']}",
        *(f"  {n} {reason}" for reason, n in c["segments_rejected_by_reason"].items()),
        f"dataset {manifest.digest[:16]} -> {out}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(command.run(main, PrepareConfig, ABOUT))
