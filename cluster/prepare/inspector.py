"""Inspection of a prepared dataset: the best clips, those nearest to a bound, and those rejected by a gate."""

from __future__ import annotations

import datetime
import io
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.dataset.manifest import REJECTS, Manifest, read_manifest, work_digest
from cluster.dataset.shards import frame_bytes, read_clips
from cluster.prepare.ledger import Ledger, read_records
from cluster.prepare.selection import SCORES, candidate_table
from cluster.sources.config import OWN_URLS
from cluster.sources.download import local_copy
from cluster.sources.manifest import Source
from cluster.storage.files import read_bytes, read_ranges
from cluster.storage.urls import join_url
from vgan.errors import InputError, VideoError
from vgan.records import ClipScores
from vgan.scenes.labels import scene_column
from vgan.video import letterbox
from vgan.video.config import VideoConfig
from vgan.video.decoding.isolated_decoder import Decoder
from vgan.video.quality_filters import bound_utilization
from vgan.video.resample import resample
from vgan.video.stabilization.stabilize import crop_only
from vgan.viz.inspector import Group, InspectedClip, Inspection, SceneSheet
from vgan.viz.report import RejectCount

SHEET = 4  # pictures on a category's contact sheet per clip of a group


def build_inspection(out: str, num: int) -> Inspection:
    """Collect `num` clips per group; the sources are decoded again to show the clips before stabilization.

    Raises:
        InputError: no finished dataset at `out`, its commit records or pixels in work/ are missing, or a source cannot
            be read.
    """
    manifest = read_manifest(out)
    config = manifest.video
    ledger = Ledger.read(out)
    records = [r for r in read_records(ledger.commit_urls(ledger.all_videos())) if r["settings"] == work_digest(config)]
    sources = {r["source"]["source_id"]: Source(**r["source"]) for r in records}
    clips = candidate_table(records, list(sources.values()), config)
    rows = clips.select(["clip_id", "source_id", "start_s", "data", "row"]).to_pylist()
    scores = [ClipScores(**row) for row in clips.select(SCORES).to_pylist()]
    strains = [bound_utilization(evidence, config.filters) for evidence in scores]
    packed = set(read_clips(out, manifest, ["clip_id"])["clip_id"].to_pylist())
    refusals = _refusals(out)
    accepted = [i for i, row in enumerate(rows) if row["clip_id"] in packed]
    if not accepted:
        raise InputError(f"{out!r} holds no commit records of its clips: prepare it again")
    by_strain = sorted(accepted, key=lambda i: strains[i])
    by_jitter = sorted(accepted, key=lambda i: -scores[i].jitter_px)
    reasons: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if refusal := refusals.get((row["source_id"], row["start_s"])):
            reasons.setdefault(refusal.partition(":")[0], []).append(i)
    per_reason = max(1, num // max(1, len(reasons)))
    refused = [i for reason in sorted(reasons) for i in reasons[reason][:per_reason]]

    def inspect(i: int) -> InspectedClip:
        row = rows[i]
        return InspectedClip(
            title=f"{row['source_id']} at {row['start_s']:.2f} s",
            before=unstabilized_clip(sources[row["source_id"]], row["start_s"], config),
            after=_pixels(out, row, config),
            evidence=scores[i],
            verdict="" if row["clip_id"] in packed else refusals[row["source_id"], row["start_s"]],
            strain=strains[i],
        )

    def group(title: str, about: str, indices: list[int]) -> Group:
        return Group(title=title, about=about, clips=tuple(inspect(i) for i in indices))

    def sheet(category: str) -> SceneSheet:
        probability = clips[scene_column(category)].to_numpy()
        top = sorted(accepted, key=lambda i: -probability[i])[: SHEET * num]
        pictures = [_pixels(out, rows[i], config)[config.clip.num_frames // 2] for i in top]
        return SceneSheet(
            category=category, pictures=np.stack(pictures), **manifest.counts["scenes"]["categories"][category]
        )

    return Inspection(
        title=f"Clips of {out}",
        created=f"{datetime.datetime.now():%Y-%m-%d %H:%M}, dataset {manifest.digest[:16]}",
        funnel=tuple((name, manifest.counts[name]) for name in ("sources", "accepted", "windows", "clips")),
        rejects=reject_counts(manifest),
        groups=(
            group(
                "Worst of the accepted", "Accepted clips whose scores are nearest to a bound.", by_strain[::-1][:num]
            ),
            group("Best of the accepted", "Accepted clips whose scores are furthest from all bounds.", by_strain[:num]),
            group(
                "Most camera motion removed",
                "Accepted clips with the largest camera motion removed by stabilization.",
                by_jitter[:num],
            ),
            group("Rejected by a gate", "Examples of each reason; their pixels are kept in work/units.", refused),
        ),
        fps=config.clip.fps,
        scenes=tuple(sheet(category) for category in manifest.scenes),
        likeliest=tuple(manifest.counts.get("scenes", {}).get("likeliest", {}).items()),
    )


def _refusals(out: str) -> dict[tuple[str, float], str]:
    """Read the clips rejected by gates: "reason: detail" by (source_id, start_s)."""
    table = pq.read_table(io.BytesIO(read_bytes(join_url(out, REJECTS))))
    return {
        (row["source_id"], row["start_s"]): f"{row['reason']}: {row['detail']}"
        for row in table.to_pylist()
        if row["stage"] == "gates"
    }


def unstabilized_clip(source: Source, start_s: float, config: VideoConfig) -> np.ndarray:
    """Decode the clip that starts at `start_s` in the source's time, cropped and resized but not stabilized.

    Returns:
        uint8 (T, size, size, 3).

    Raises:
        InputError: the source can no longer be read.
    """
    try:
        pixels = _frames_at(source, start_s, config)
    except VideoError as error:
        raise InputError(
            f"cannot decode {source.source_id!r} again to show the clip before stabilization: {error}"
        ) from error
    if config.prescreen.crop_letterbox:
        pixels = letterbox.crop(pixels, letterbox.detect_bars(pixels))
    return crop_only(pixels, config.clip.size)[0]


def _frames_at(source: Source, start_s: float, config: VideoConfig) -> np.ndarray:
    """Decode uint8 frames (T, H, W, 3) from `start_s` on at the clips' rate, the last repeated if too few."""
    num, fps = config.clip.num_frames, config.clip.fps
    with local_copy(source, OWN_URLS) as path, Decoder(config.decode) as decoder:
        from_zero_s = start_s - next(decoder.frames(path)).pts_s
        nearby = decoder.frames(path, max(0.0, from_zero_s - 0.5 / fps), from_zero_s + (num + 2) / fps + 1)
        clip_frames = (frame for frame in nearby if frame.pts_s > start_s - 1e-6)
        images = [
            frame.image for _, (_, frame) in zip(range(num), resample(clip_frames, fps, math.inf, 1e-6), strict=False)
        ]
    return np.stack(images + images[-1:] * (num - len(images)))


def _pixels(out: str, row: dict[str, Any], config: VideoConfig) -> np.ndarray:
    """Read the stored frames of one candidate, uint8 (T, H, W, 3)."""
    size = frame_bytes(config.clip)
    span = (row["row"] * size, (row["row"] + 1) * size)
    try:
        (data,) = read_ranges(join_url(out, row["data"]), [span])
    except FileNotFoundError as error:
        raise InputError(f"the pixels of unpacked clips are missing from {out!r}/work/units") from error
    spec = config.clip
    return np.frombuffer(data, np.uint8).reshape(spec.num_frames, spec.size, spec.size, 3)


def reject_counts(manifest: Manifest) -> tuple[RejectCount, ...]:
    """List the numbers of rejects by stage and reason, most frequent first."""
    by_stage = manifest.counts["segments_rejected_by_reason"]
    counts = [RejectCount(stage=s, reason=r, count=n) for s, reasons in by_stage.items() for r, n in reasons.items()]
    return tuple(sorted(counts, key=lambda c: -c.count))
