"""Queries on a dataset's folder, finished or not: progress, verification, quarantined and requeued videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from cluster.dataset.manifest import MANIFEST
from cluster.prepare.commit_records import iter_record_tables
from cluster.prepare.ledger import Ledger, read_records, requeue_videos
from cluster.sources.manifest import Source
from cluster.storage.files import exists
from cluster.storage.urls import join_url
from vgan.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Status:
    """Progress of a dataset's preparation."""

    videos: int | None  # requested; None if the sources are not known
    complete: int  # videos with all segments committed
    begun: int  # videos with some segments committed
    units: int  # commit records
    source_hours: float
    clips: int  # stored, before the gates are applied
    quarantined: int
    rejects: dict[str, int]  # "stage: reason" -> number of rejects
    finished: bool  # a manifest exists


def dataset_status(out: str, videos: Mapping[str, Source] | None = None) -> Status:
    """Summarize the commit records of a dataset's folder, of `videos` (by name) only if given.

    Raises:
        InputError: neither commit records nor a manifest exist at `out`.
    """
    ledger = Ledger.read(out)
    finished = exists(join_url(out, MANIFEST))
    if not ledger.units.num_rows and not finished:
        raise InputError(f"nothing was prepared at {out!r}: it holds neither commit records nor a manifest")
    requested = ledger.all_videos() if videos is None else videos
    committed, segments = ledger.progress(requested)
    complete = int(((segments > 0) & (committed == segments)).sum())
    units, source_s, clips, quarantined, rejects = 0, 0.0, 0, set[str](), Counter[str]()
    for records in iter_record_tables(
        ledger, requested, ["video", "source_s", "quarantined", "rejects", "clips.clip_id"]
    ):
        units += records.num_rows
        source_s += pc.sum(records["source_s"]).as_py()
        clips += pc.sum(pc.list_value_length(pc.struct_field(records["clips"], "clip_id"))).as_py() or 0
        quarantined.update(records["video"].filter(records["quarantined"]).to_pylist())
        rejects.update(
            f"{reject['stage']}: {reject['reason']}" for reject in pc.list_flatten(records["rejects"]).to_pylist()
        )
    return Status(
        videos=None if videos is None else len(videos),
        complete=complete,
        begun=int((segments > 0).sum()) - complete,
        units=units,
        source_hours=source_s / 3600,
        clips=clips,
        quarantined=len(quarantined),
        rejects=dict(rejects.most_common()),
        finished=finished,
    )


def list_quarantined(out: str) -> list[dict[str, Any]]:
    """List quarantined videos and segments: source_id, source_uri, stage, reason, detail, generation of each reject."""
    ledger = Ledger.read(out)
    records = read_records(ledger.commit_urls(ledger.all_videos()))
    return [
        {
            "source_id": record["source"]["source_id"],
            "source_uri": record["source"]["uri"],
            **{key: reject[key] for key in ("stage", "reason", "detail")},
            "generation": ledger.generation(record["video"]),
        }
        for record in records
        if record["quarantined"]
        for reject in record["rejects"]
        if reject["start_s"] is None
    ]


def requeue(out: str, reason: str, videos: Mapping[str, Source]) -> int:
    """Requeue those of `videos` (by name) that were rejected completely, or had a segment rejected, for `reason`.

    Returns:
        Number of requeued videos; 0 if there are none while an earlier retry is still unfinished.

    Raises:
        InputError: no video was rejected for `reason`; the message lists the reasons that occur.
    """
    ledger = Ledger.read(out)
    records = read_records(ledger.commit_urls(videos))
    reasons = Counter(
        reject["reason"] for record in records for reject in record["rejects"] if reject["start_s"] is None
    )
    rejected_videos = {
        record["video"]
        for record in records
        if any(reject["start_s"] is None and reject["reason"] == reason for reject in record["rejects"])
    }
    if not rejected_videos and any(ledger.generation(v) and not ledger.is_complete(v) for v in videos):
        return 0
    if not rejected_videos:
        listing = ", ".join(f"{name} ({n})" for name, n in reasons.most_common()) or "none"
        raise InputError(f"no video in {out!r} was rejected for reason={reason!r}; reasons that occur: {listing}")
    requeue_videos(out, ledger, sorted(rejected_videos))
    return len(rejected_videos)


def status_text(found: Status, out: str) -> str:
    """Format a `Status` as text."""
    of = "" if found.videos is None else f" of {found.videos}"
    lines = [
        f"{out}: {'finished' if found.finished else 'not finished'}",
        f"videos committed: {found.complete}{of}; partially committed: {found.begun}; commit records: {found.units}",
        f"source video: {found.source_hours:.3f} h; clips before filters: {found.clips}",
        f"quarantined videos: {found.quarantined}",
        *(f"  {n} {reason}" for reason, n in found.rejects.items()),
    ]
    return "\n".join(lines)
