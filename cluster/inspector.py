"""Clips of a prepared dataset to look at: the best, those nearest to a bound, those a gate turned away."""

from __future__ import annotations

import datetime
import io
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster import storage
from cluster.fetch import local_copy
from cluster.judging import SCORES, candidates
from cluster.shards import REJECTS, Manifest, frame_bytes, read_clips, read_manifest, work_digest
from cluster.sources import Source
from cluster.units import Ledger, read_records
from vgan.config import VideoConfig
from vgan.errors import BadInput, BadVideo
from vgan.records import Evidence
from vgan.scenes.labels import scene_column
from vgan.video import letterbox
from vgan.video.child import Decoder
from vgan.video.gates import strain
from vgan.video.resample import resample
from vgan.video.stabilize import unstabilized
from vgan.viz.inspector import Group, InspectedClip, Inspection, SceneSheet
from vgan.viz.report import RejectCount

SHEET = 4  # pictures on a category's contact sheet for each clip of a group


def inspection(out: str, num: int) -> Inspection:
    """Gather `num` clips of each group; the sources are read again for how the clips looked before.

    Raises:
        BadInput: no finished dataset at `out`, or its unpacked clips are gone.
    """
    manifest = read_manifest(out)
    config = manifest.video
    ledger = Ledger.read(out)
    records = [r for r in read_records(ledger.commit_urls(ledger.all_videos())) if r["settings"] == work_digest(config)]
    sources = {r["source"]["source_id"]: Source(**r["source"]) for r in records}
    clips = candidates(records, list(sources.values()), config)
    rows = clips.select(["clip_id", "source_id", "start_s", "data", "row"]).to_pylist()
    scores = [Evidence(**row) for row in clips.select(SCORES).to_pylist()]
    strains = [strain(evidence, config.gates) for evidence in scores]
    packed = set(read_clips(out, manifest, ["clip_id"])["clip_id"].to_pylist())
    refusals = _refusals(out)
    accepted = [i for i, row in enumerate(rows) if row["clip_id"] in packed]
    if not accepted:
        raise BadInput(f"{out!r} holds no commit records of its clips: prepare it again")
    by_strain = sorted(accepted, key=lambda i: strains[i])
    moved = sorted(accepted, key=lambda i: -scores[i].jitter_px)
    reasons: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if found := refusals.get((row["source_id"], row["start_s"])):
            reasons.setdefault(found.partition(":")[0], []).append(i)
    per_reason = max(1, num // max(1, len(reasons)))
    refused = [i for reason in sorted(reasons) for i in reasons[reason][:per_reason]]

    def look(i: int) -> InspectedClip:
        row = rows[i]
        return InspectedClip(
            title=f"{row['source_id']} at {row['start_s']:.2f} s",
            before=clip_before(sources[row["source_id"]], row["start_s"], config),
            after=_pixels(out, row, config),
            evidence=scores[i],
            verdict="" if row["clip_id"] in packed else refusals[row["source_id"], row["start_s"]],
            strain=strains[i],
        )

    def group(title: str, about: str, chosen: list[int]) -> Group:
        return Group(title=title, about=about, clips=tuple(look(i) for i in chosen))

    def sheet(category: str) -> SceneSheet:
        likelihood = clips[scene_column(category)].to_numpy()
        best = sorted(accepted, key=lambda i: -likelihood[i])[: SHEET * num]
        middles = [_pixels(out, rows[i], config)[config.clip.num_frames // 2] for i in best]
        return SceneSheet(
            category=category, pictures=np.stack(middles), **manifest.counts["scenes"]["categories"][category]
        )

    return Inspection(
        title=f"Clips of {out}",
        created=f"{datetime.datetime.now():%Y-%m-%d %H:%M}, dataset {manifest.digest[:16]}",
        funnel=tuple((name, manifest.counts[name]) for name in ("sources", "accepted", "windows", "clips")),
        rejects=reject_counts(manifest),
        groups=(
            group("Worst of the accepted", "Nearest to one of their bounds.", by_strain[::-1][:num]),
            group("Best", "Furthest from all bounds.", by_strain[:num]),
            group("Most camera motion removed", "Where stabilization did most.", moved[:num]),
            group("Turned away by a gate", "Some of each reason; their pixels are kept beside the shards.", refused),
        ),
        fps=config.clip.fps,
        scenes=tuple(sheet(category) for category in manifest.scenes),
        likeliest=tuple(manifest.counts.get("scenes", {}).get("likeliest", {}).items()),
    )


def _refusals(out: str) -> dict[tuple[str, float], str]:
    """What each stretch was refused for by a gate, by source and start."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(out, REJECTS))))
    return {
        (row["source_id"], row["start_s"]): f"{row['reason']}: {row['detail']}"
        for row in table.to_pylist()
        if row["stage"] == "gates"
    }


def clip_before(source: Source, start_s: float, config: VideoConfig) -> np.ndarray:
    """(T, size, size, 3) uint8: the clip that starts at `start_s` in the source's time, cropped and reduced only.

    Raises:
        BadInput: the source cannot be read any more.
    """
    try:
        pixels = _frames_at(source, start_s, config)
    except BadVideo as fault:
        raise BadInput(f"{source.source_id!r} cannot be read again to show how it was: {fault}") from fault
    if config.screen.crop_letterbox:
        pixels = letterbox.crop(pixels, letterbox.bars(pixels))
    return unstabilized(pixels, config.clip.size)[0]


def _frames_at(source: Source, start_s: float, config: VideoConfig) -> np.ndarray:
    """(T, H, W, 3) uint8: the frames from `start_s` on at the clips' rate; the last is repeated at need."""
    num, fps = config.clip.num_frames, config.clip.fps
    with local_copy(source) as path, Decoder(config.decode) as decoder:
        from_zero_s = start_s - next(decoder.frames(path)).pts_s
        near = decoder.frames(path, max(0.0, from_zero_s - 0.5 / fps), from_zero_s + (num + 2) / fps + 1)
        own = (frame for frame in near if frame.pts_s > start_s - 1e-6)
        images = [frame.image for _, (_, frame) in zip(range(num), resample(own, fps, math.inf, 1e-6), strict=False)]
    return np.stack(images + images[-1:] * (num - len(images)))


def _pixels(out: str, row: dict[str, Any], config: VideoConfig) -> np.ndarray:
    """The stored frames of one candidate."""
    size = frame_bytes(config.clip)
    span = (row["row"] * size, (row["row"] + 1) * size)
    try:
        (data,) = storage.read_ranges(storage.join(out, row["data"]), [span])
    except FileNotFoundError as fault:
        raise BadInput(f"the pixels of unpacked clips are gone from {out!r}/work/units") from fault
    spec = config.clip
    return np.frombuffer(data, np.uint8).reshape(spec.num_frames, spec.size, spec.size, 3)


def reject_counts(manifest: Manifest) -> tuple[RejectCount, ...]:
    """Stretches of video turned away, by stage and reason, most frequent first."""
    by_stage = manifest.counts["segments_rejected_by_reason"]
    counts = [RejectCount(stage=s, reason=r, count=n) for s, reasons in by_stage.items() for r, n in reasons.items()]
    return tuple(sorted(counts, key=lambda c: -c.count))
