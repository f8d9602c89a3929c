"""Turn videos into a sharded dataset of stabilized clips, and answer questions about one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from cluster.dataset.card import write_card, yield_table
from cluster.dataset.deletion_list import add_to_deletion_list
from cluster.dataset.export_strips import write_strips
from cluster.dataset.manifest import CODECS, MANIFEST, Manifest
from cluster.dataset.verify import verify_dataset
from cluster.observability.mlflow_tracker import Tracker
from cluster.observability.tracking_config import TrackingConfig
from cluster.prepare.inspector import build_inspection
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import find_finished_dataset, name_videos, prepare
from cluster.prepare.scene_scores import resolve_classifier
from cluster.prepare.status import dataset_status, list_quarantined, requeue, status_text
from cluster.runtime.provenance import flatten, redacted_settings
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.sources.manifest import read_sources
from cluster.storage.files import exists, json_bytes, make_writable_folder, read_lines, write_bytes
from cluster.storage.urls import absolute_url, join_url
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, option, section
from vgan.scenes.config import SceneConfig
from vgan.video.config import (
    ClipSpec,
    DecodeConfig,
    FilterConfig,
    PrescreenConfig,
    ShotConfig,
    StabilizeConfig,
    VideoConfig,
)
from vgan.viz.inspector import render_inspection

ABOUT = """Decode, cut into shots, stabilize and pack videos into a dataset. Interrupted, run it again: it goes on.

  python -m jobs.prepare sources=out/sources.parquet out=out/clips
  python -m jobs.prepare sources=/videos out=s3://bucket/clips stabilize.preset=off
  python -m jobs.prepare sources=/tinyvideo/golf.txt out=out/golf stabilize.preset=off      the original's JPEG strips

Scores are stored with every clip, and the bounds filters.* are applied when the dataset is packed. Other bounds decode
nothing again:

  python -m jobs.prepare sources=/videos out=out/clips filters.max_filled_fraction=0.3 overwrite=true

Scenes are told by a Places365 classifier that you bring, such as the ResNets' .pth.tar of places2.csail.mit.edu. Every
clip keeps the scores of the categories; what is kept is decided last too:

  python -m jobs.prepare sources=/videos out=out/scenes scene.weights=resnet18_places365.pth.tar decode.short_side=256
  python -m jobs.prepare ... scene.keep_categories=[beach] scene.min_probability=0.4 overwrite=true    (decodes nothing)

What stands in a folder, finished or not:

  python -m jobs.prepare action=status out=out/clips                     how far it is, and what was rejected
  python -m jobs.prepare action=verify out=out/clips                     read every shard, compare with the manifest
  python -m jobs.prepare action=inspect out=out/clips                    write inspector.html: clips before and after
  python -m jobs.prepare action=strips out=out/clips strips=out/strips   the clips as the original's JPEG strips
  python -m jobs.prepare action=card out=out/clips                       write card.md, card.json and card.png
  python -m jobs.prepare action=delete names=gone.txt out=out/clips      leave these videos out from now on
  python -m jobs.prepare action=quarantine out=out/clips                 videos that killed their decoder
  python -m jobs.prepare action=retry reason=timeout sources=... out=... do these again, then finish the dataset
"""
ACTIONS = ("run", "status", "verify", "inspect", "strips", "card", "delete", "quarantine", "retry")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """One dataset."""

    action: str = option("run", f"one of {', '.join(ACTIONS)}")
    sources: str = option("", "manifest (.parquet, .csv, .txt), folder or glob of videos (required to run and retry)")
    out: str = option("out/clips", "url of the dataset's folder")
    num_clips: int = option(8, "with action=inspect: clips in each group of the page")
    strips: str = option("", "with action=strips: url of the folder they go to")
    names: str = option("", "with action=delete: a source id, uri or page, or the url of a .txt list, one a line")
    reason: str = option("", "with action=retry: do the videos rejected for this reason again")
    max_reject_fraction: float = option(1.0, "fail if a larger share of the videos is rejected, 0..1")
    shard_mb: int = option(400, "size of a shard's raw pixels, MB")
    codec: str = option("raw", "raw pixels, or jpeg: a fifth of the bytes, not quite the pixels (quality 95, 42 dB)")
    overwrite: bool = option(
        False, "pack anew over a finished dataset: other sources, gates, seed, shard size or codec"
    )
    seed: int = option(0, "of the shuffle into shards")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    clip: ClipSpec = section(ClipSpec, "shape of a clip")
    decode: DecodeConfig = section(DecodeConfig, "file to frames")
    shots: ShotConfig = section(ShotConfig, "frames to shots")
    prescreen: PrescreenConfig = section(PrescreenConfig, "cheap tests before registration")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")
    filters: FilterConfig = section(FilterConfig, "bounds on the stored scores, applied last")
    scene: SceneConfig = section(SceneConfig, "which scenes clips show")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("action", self.action, ACTIONS)
        check_choice("codec", self.codec, CODECS)
        if self.shard_mb < 1:
            raise ValueError(f"shard_mb must be at least 1, got {self.shard_mb}")
        if self.num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, got {self.num_clips}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must be in 0..1, got {self.max_reject_fraction}")

    def video(self) -> VideoConfig:
        """The settings between a video file and its clips, and which scene classifier that file is."""
        return resolve_classifier(VideoConfig(**{f.name: getattr(self, f.name) for f in fields(VideoConfig)}))


def main(config: PrepareConfig) -> None:
    """Do what `config.action` says."""
    cli.require(config, "out")
    out = absolute_url(config.out)
    if config.action == "status":
        show_status(config, out)
    elif config.action == "verify":
        check(config, out)
    elif config.action == "inspect":
        page = join_url(out, "inspector.html")
        write_bytes(page, render_inspection(build_inspection(out, config.num_clips)).encode())
        print(f"{page}: open it in a browser")
    elif config.action == "strips":
        cli.require(config, "strips")
        with ray_session(config.address):
            num = write_strips(out, absolute_url(config.strips))
        print(f"{num} strips and their list.txt -> {config.strips}")
    elif config.action == "card":
        for place in write_card(out):
            print(place)
    elif config.action == "delete":
        mark_deleted(config, out)
    elif config.action == "quarantine":
        show_quarantine(out)
    else:
        make_dataset(config, out)


def make_dataset(config: PrepareConfig, out: str) -> None:
    """Prepare the dataset, log its counts, print them; with action=retry, first queue again what was rejected."""
    cli.require(config, "sources", *(["reason"] if config.action == "retry" else []))
    sources = read_sources(absolute_url(config.sources))
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "prepare")
    tracker.experiment_id()  # a tracking server that cannot be used is told before the work, not after
    make_writable_folder(out)
    packing = PackingConfig(seed=config.seed, shard_mb=config.shard_mb, codec=config.codec)
    again = config.overwrite or config.action == "retry"
    manifest = find_finished_dataset(sources, out, config.video(), packing, replace=again)
    if config.action == "retry":
        num = requeue(out, config.reason, name_videos(sources, config.video()))
        print(f"{num} videos queued again", flush=True)
    if manifest is None:
        with ray_session(config.address) as alone:
            if alone and config.scene.weights and config.scene.gpus:
                require_resources("a task with scene.gpus", "0 or", cpus=1, gpus=config.scene.gpus)
            manifest = prepare(sources, out, config.video(), packing, replace=again)
    cli.save(config, join_url(out, "settings.yaml"))
    track(tracker, config, manifest, out)
    print(summary(manifest, out))
    rejected = manifest.counts["rejected"] / manifest.counts["sources"]
    if rejected > config.max_reject_fraction:
        raise InputError(
            f"{rejected:.0%} of the videos were rejected, more than max_reject_fraction={config.max_reject_fraction}"
        )


def show_status(config: PrepareConfig, out: str) -> None:
    """Print how far the dataset is, of these sources if they are given."""
    videos = None
    if config.sources:
        videos = name_videos(read_sources(absolute_url(config.sources)), config.video())
    print(status_text(dataset_status(out, videos), out))


def mark_deleted(config: PrepareConfig, out: str) -> None:
    """Put videos on the dataset's deletion list."""
    cli.require(config, "names")
    names = [config.names]
    if config.names.endswith(".txt"):
        names = read_lines(absolute_url(config.names))
    if not exists(join_url(out, "work")) and not exists(join_url(out, MANIFEST)):
        raise InputError(f"nothing was prepared at {out!r}")
    clips = add_to_deletion_list(out, names)
    print(f"{clips} clips are left out from the next epoch on; prepare with overwrite=true removes them for good")


def check(config: PrepareConfig, out: str) -> None:
    """Verify the dataset.

    Raises:
        InputError: something is wrong with it; every fault is printed before.
    """
    with ray_session(config.address):
        faults = verify_dataset(out)
    for fault in faults:
        print(fault)
    if faults:
        raise InputError(f"{out!r} is not whole: {len(faults)} faults; prepare it again with overwrite=true")
    print(f"whole: {out}")


def show_quarantine(out: str) -> None:
    """Print what was set aside, a line a video."""
    rows = list_quarantined(out)
    for row in rows:
        print(f"{row['reason']}\t{row['source_uri']}\t{row['detail']}\tgeneration {row['generation']}")
    print(f"{len(rows)} in quarantine" + ("; action=retry reason=... does them again" if rows else ""))


def track(tracker: Tracker, config: PrepareConfig, manifest: Manifest, out: str) -> None:
    """One MLflow run for the dataset, found again by its digest."""
    tags = {"dataset_hash": manifest.digest, "dataset_url": out, "git_commit": manifest.git_commit}
    run = tracker.start(
        f"prepare-{manifest.digest}", name="prepare", params=flatten(redacted_settings(config)), tags=tags
    )
    counts = {f"counts/{k}": v for k, v in manifest.counts.items() if not isinstance(v, dict)}
    rejects = flatten(manifest.counts["segments_rejected_by_reason"])
    with run.ending():
        run.dataset(name="clips", digest=manifest.digest, url=out, context="prepare")
        run.metrics(counts | {f"rejects/{k.replace('.', '/')}": v for k, v in rejects.items()})
        run.text(json_bytes(asdict(manifest)).decode(), "manifest.json")
        run.text(yield_table(manifest.counts), "funnel.txt")


def summary(manifest: Manifest, out: str) -> str:
    """What a person wants to know when it is over; the sum of sources comes first."""
    c = manifest.counts
    lines = [
        f"sources = accepted + rejected: {c['sources']} = {c['accepted']} + {c['rejected']}",
        *(f"  {n} rejected: {reason}" for reason, n in c["rejected_by_reason"].items()),
        "yield by stage and reason:",
        yield_table(c),
        f"dataset {manifest.digest[:16]}: {c['clips']} clips in {len(manifest.shards)} shards -> {out}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PrepareConfig, ABOUT))
