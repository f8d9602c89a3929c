"""Report of the full pipeline, gathered from a dataset, a training run and a fine-tuning sweep in storage."""

from __future__ import annotations

import datetime
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2

from cluster.checkpoints.store import open_checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.shards import decode_frames, read_clips
from cluster.prepare.inspector import reject_counts, unstabilized_clip
from cluster.sources.manifest import Source
from cluster.storage.files import read_json
from cluster.storage.urls import join_url
from cluster.transfer.labeled_clips import labeled_dataset_url
from cluster.transfer.sweep_results import to_results
from vgan.transfer.accuracy_curves import accuracies, relative_gains
from vgan.viz.figures import figure_png, label_fraction_figure
from vgan.viz.panels import BeforeAfter, before_after_sheet
from vgan.viz.report import DemoReport, Media, StageSummary


def build_demo_report(
    *,
    title: str,
    clips_url: str,
    run_url: str,
    samples: Path,
    sweep_url: str,
    tracking_uri: str,
    stages: Sequence[StageSummary],
) -> DemoReport:
    """Gather the report of one pass through the pipeline.

    Args:
        title: title of the page.
        clips_url: URL of the unlabeled dataset.
        run_url: URL of the training run's folder.
        samples: folder written by jobs.generate.
        sweep_url: out= of the sweep named "sweep".
        tracking_uri: tracking URI of MLflow.
        stages: the jobs with their times; this function adds the figures.
    """
    manifest, labeled = read_manifest(clips_url), read_manifest(labeled_dataset_url(sweep_url))
    checkpoint = open_checkpoint(run_url)
    rows = read_json(join_url(sweep_url, "sweep", "results.json"))
    protocol, chance = rows[0]["protocol"], rows[0]["chance"]
    counts = manifest.counts
    figures = {
        "acquire": {"videos": counts["sources"]},
        "prepare": {name: counts[name] for name in ("accepted", "rejected", "clips")},
        "train": {"steps": checkpoint.step, "clips seen": checkpoint.clips_seen},
        "generate": {"clips": len(list(samples.glob("sample-*.mp4")))},
        "finetune": {"runs": len(rows), "test protocol": protocol},
    }
    pairs = stabilization_pairs(clips_url, manifest, 3) + stabilization_pairs(
        labeled_dataset_url(sweep_url), labeled, 2
    )
    sheet = cv2.imencode(".png", cv2.cvtColor(before_after_sheet(pairs), cv2.COLOR_RGB2BGR))[1].tobytes()
    results = to_results(rows)
    accuracy = accuracies(results)
    plot = figure_png(label_fraction_figure(accuracy, relative_gains(results), protocol=protocol, chance=chance))
    return DemoReport(
        title=title,
        created=f"{datetime.datetime.now():%Y-%m-%d %H:%M}, version {importlib.metadata.version('scene-dynamics')}",
        summary="Real video, stabilized and cut into 32-frame clips; a two-stream video GAN trained on them with two "
        "DeepSpeed engines on two Ray Train workers; its discriminator fine-tuned on labeled actions.",
        stages=tuple(
            replace(stage, figures=tuple((k, str(v)) for k, v in figures.get(stage.name, {}).items()))
            for stage in stages
        ),
        funnel=tuple((name, counts[name]) for name in ("sources", "accepted", "clips")),
        rejects=reject_counts(manifest),
        stabilization=(Media(data=sheet, media_type="image/png", alt="Clips before and after stabilization"),),
        samples=(Media.from_file(samples / "grid.mp4", alt="Generated clips"),),
        streams=(Media.from_file(samples / "panels.mp4", alt="Generated clips, foreground, mask and background"),),
        accuracy_figure=Media(data=plot, media_type="image/png", alt="Accuracy against label fraction"),
        accuracy=tuple(accuracy),
        protocol=protocol,
        chance=chance,
        accuracy_note="vgan starts from the trained discriminator, logistic regresses on its features, random "
        "starts from PyTorch's default initialization. After minutes of training on minutes of video, differences here "
        "show that the pipeline works, not how good the method is.",
        mlflow_command=shlex.join(
            [str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", tracking_uri]
        ),
        lineage=(
            ("unlabeled dataset", manifest.digest),
            ("labeled dataset", labeled.digest),
            ("checkpoint", checkpoint.url),
            ("MLflow run of the training", checkpoint.mlflow_run_id),
        ),
    )


def stabilization_pairs(url: str, manifest: Manifest, num: int) -> list[BeforeAfter]:
    """Select the clips with the most camera motion, one per source, before and after stabilization.

    The clips before stabilization are decoded again and only cropped.
    """
    columns = ["source_id", "source_uri", "start_s", "jitter_px", "residual_px", "stabilized", "clip_id"]
    rows = read_clips(url, manifest, columns).to_pylist()
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["jitter_px"])
    row_of_source: dict[str, int] = {}
    for i in order:
        if rows[i]["stabilized"]:
            row_of_source.setdefault(rows[i]["source_id"], i)
    pairs = []
    for name, i in list(row_of_source.items())[:num]:
        row = rows[i]
        removed, residual = row["jitter_px"], row["residual_px"]
        title = f"{name} at {row['start_s']:.1f} s: {removed:.1f} px per frame removed, {residual:.2f} px remaining"
        before = unstabilized_clip(Source(uri=row["source_uri"], source_id=name), row["start_s"], manifest.video)
        after = read_clips(url, manifest, ["frames"], only=row["clip_id"])  # a dataset's frames may not fit in memory
        pairs.append(BeforeAfter(title=title, before=before, after=decode_frames(after["frames"], manifest.clip)[0]))
    return pairs
