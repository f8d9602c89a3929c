"""Job that turns videos into a sharded dataset of stabilized clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cluster.dataset.codecs import CODECS
from cluster.observability.tracking_config import TrackingConfig
from cluster.sources.config import FetchConfig
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, option, require_options, section
from vgan.video.config import VideoConfig

if TYPE_CHECKING:
    from cluster.dataset.manifest import Manifest
    from cluster.observability.mlflow_tracker import Tracker

ABOUT = """Decode videos, cut them into clips, stabilize, filter and pack these into a sharded dataset. After an
interruption, run it again to resume.

  python -m jobs.prepare sources=out/sources.parquet out=out/clips
  python -m jobs.prepare sources=/videos out=s3://bucket/clips stabilize.preset=off
  python -m jobs.prepare sources=/tinyvideo/golf.txt out=out/golf stabilize.preset=off      the original's JPEG strips

Scores are stored with every clip and the bounds filters.* are applied when packing. filters.preset=strict keeps steady
clips, paper keeps nearly all of them. Other bounds decode nothing again:

  python -m jobs.prepare sources=/videos out=out/clips filters.preset=paper overwrite=true
  python -m jobs.prepare sources=/videos out=out/clips filters.max_filled_fraction=0.3 overwrite=true

Scene scores need a Places365 classifier file, such as a ResNet's .pth.tar from places2.csail.mit.edu:

  python -m jobs.prepare sources=/videos out=out/scenes scene.weights=resnet18_places365.pth.tar decode.short_side=256
  python -m jobs.prepare ... scene.keep_categories=[beach] scene.min_probability=0.4 overwrite=true

retry=REASON processes the videos again that were rejected for this reason; retry=unreachable those of a dead host or
a network failure. To inspect, verify, export or edit a dataset: python -m jobs.dataset --help.
"""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(VideoConfig):
    """Settings of a dataset."""

    sources: str = option("", "URL of a manifest (.parquet, .csv, .txt), or folder or glob of videos", "required")
    out: str = option("out/clips", "URL of the dataset's folder", "common")
    retry: str = option("", "reject reason whose videos are processed again; empty: none", "common")
    max_reject_fraction: float = option(
        1.0, "maximum share of rejected videos, 0..1; above it the job fails after packing", "common"
    )
    shard_mb: int = option(400, "raw pixels per shard, MB")
    codec: str = option(
        "raw", "encoding of frames: raw, or jpeg (lossy: quality 95, 42 dB; a fifth of the bytes)", "common"
    )
    overwrite: bool = option(
        False, "replace a finished dataset, e.g. with other sources, filters, seed, shard size or codec", "common"
    )
    seed: int = option(0, "seed of the order of clips in shards")
    fetch: FetchConfig = section(FetchConfig, "download of videos")
    address: str = option("", "address of the Ray cluster; empty: the one this job was submitted to, else a local one")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow tracking")

    def __post_init__(self) -> None:
        check_choice("codec", self.codec, CODECS)
        if self.shard_mb < 1:
            raise ValueError(f"shard_mb must be at least 1, got {self.shard_mb}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must be in 0..1, got {self.max_reject_fraction}")


def main(config: PrepareConfig) -> None:
    """Prepare the dataset, log its counts and print them; with `retry`, requeue rejected videos first.

    Raises:
        InputError: more videos were rejected than `max_reject_fraction`.
    """
    from cluster.observability.mlflow_tracker import Tracker  # heavy, after the arguments are checked
    from cluster.prepare.packing import PackingConfig
    from cluster.prepare.pipeline import find_finished, make_plan, prepare_dataset
    from cluster.prepare.scene_scores import video_settings
    from cluster.prepare.status import requeue
    from cluster.runtime.provenance import save_settings
    from cluster.runtime.ray_session import ray_session, require_resources
    from cluster.sources.manifest import read_sources
    from cluster.storage.files import make_writable_folder
    from cluster.storage.urls import absolute_url, join_url

    require_options(config, "sources", "out")
    out, sources = absolute_url(config.out), read_sources(absolute_url(config.sources))
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "prepare")
    tracker.experiment_id()  # an unusable tracking server is reported before the work, not after it
    make_writable_folder(out)
    packing = PackingConfig(seed=config.seed, shard_mb=config.shard_mb, codec=config.codec)
    overwrite = config.overwrite or bool(config.retry)
    plan = make_plan(sources, out, video_settings(config), packing, fetch=config.fetch, overwrite=overwrite)
    manifest = find_finished(plan)
    if config.retry:
        count = requeue(out, config.retry, plan.videos)
        print(f"{count} videos queued again", flush=True)
    if manifest is None:
        with ray_session(config.address) as is_local:
            if is_local and config.scene.weights and config.scene.gpus:
                require_resources("a task with scene.gpus", "0 or", cpus=1, gpus=config.scene.gpus)
            manifest = prepare_dataset(plan)
    save_settings(config, join_url(out, "settings.yaml"))
    log_run(tracker, config, manifest, out)
    print(format_summary(manifest, out))
    rejected = manifest.counts["rejected"] / manifest.counts["sources"]
    if rejected > config.max_reject_fraction:
        raise InputError(
            f"{rejected:.0%} of the videos were rejected, more than max_reject_fraction={config.max_reject_fraction}"
        )


def log_run(tracker: Tracker, config: PrepareConfig, manifest: Manifest, out: str) -> None:
    """Log the dataset to the MLflow run of its digest, a new one if there is none."""
    from cluster.dataset.card import yield_table
    from cluster.runtime.provenance import redacted_settings
    from cluster.storage.files import json_bytes
    from vgan.options import flatten

    tags = {"dataset_hash": manifest.digest, "dataset_url": out, "git_commit": manifest.git_commit}
    run = tracker.start(
        f"prepare-{manifest.digest}", name="prepare", params=flatten(redacted_settings(config)), tags=tags
    )
    counts = {f"counts/{k}": v for k, v in manifest.counts.items() if not isinstance(v, dict)}
    rejects = flatten(manifest.counts["segments_rejected_by_reason"])
    with run.run_context():
        run.dataset(name="clips", digest=manifest.digest, url=out, context="prepare")
        run.metrics(counts | {f"rejects/{k.replace('.', '/')}": v for k, v in rejects.items()})
        run.text(json_bytes(asdict(manifest)).decode(), "manifest.json")
        run.text(yield_table(manifest.counts), "funnel.txt")


def format_summary(manifest: Manifest, out: str) -> str:
    """Format the final summary: sources, rejected videos by reason, yield of each stage, size of the dataset."""
    from cluster.dataset.card import yield_table

    counts = manifest.counts
    lines = [
        f"sources = accepted + rejected: {counts['sources']} = {counts['accepted']} + {counts['rejected']}",
        *(f"  {count} rejected: {reason}" for reason, count in counts["rejected_by_reason"].items()),
        "yield by stage and reason:",
        yield_table(counts),
        f"dataset {manifest.digest[:16]}: {counts['clips']} clips in {len(manifest.shards)} shards -> {out}",
    ]
    return "\n".join(lines)


def moved_action(arguments: Sequence[str]) -> str:
    """Return the message for an argument action=VERB of earlier versions that names its replacement, else ""."""
    for argument in arguments:
        if argument == "action=retry":
            return "action=retry is now retry=REASON: python -m jobs.prepare retry=REASON sources=... out=..."
        if argument.startswith("action=") and argument != "action=run":
            verb = argument.removeprefix("action=")
            return f"action={verb} is now a verb of jobs.dataset: python -m jobs.dataset {verb} data=..."
    return ""


if __name__ == "__main__":
    if moved := moved_action(sys.argv[1:]):
        print(f"error: {moved}", file=sys.stderr)
        raise SystemExit(cli.BAD_INPUT)
    raise SystemExit(cli.run(main, PrepareConfig, ABOUT))
