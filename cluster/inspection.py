"""What can be asked of a dataset's folder, finished or not: how far it is, whether it is whole, what was set aside."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cluster import storage
from cluster.placement import decode_labels
from cluster.progress import progress_bar
from cluster.records import tables
from cluster.shards import MANIFEST, Manifest, Shard, read_manifest
from cluster.sources import Source
from cluster.units import Ledger, queue_again, read_records
from vgan.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a dataset is."""

    videos: int | None  # asked for, where the sources are known
    complete: int  # videos whose every segment is committed
    begun: int  # videos with a segment missing
    units: int  # commit records
    source_hours: float
    clips: int  # stored, before the gates
    quarantined: int
    rejects: dict[str, int]  # "stage: reason" of every stretch
    finished: bool  # there is a manifest


def status(out: str, videos: Mapping[str, Source] | None = None) -> Status:
    """Read the commit records of a dataset's folder; `videos` (by name) limits it to these.

    Raises:
        BadInput: there is nothing at all.
    """
    ledger = Ledger.read(out)
    finished = storage.exists(storage.join(out, MANIFEST))
    if not ledger.units.num_rows and not finished:
        raise BadInput(f"nothing was prepared at {out!r}: no commit record and no manifest is there")
    asked = ledger.all_videos() if videos is None else videos
    committed, segments = ledger.progress(asked)
    complete = int(((segments > 0) & (committed == segments)).sum())
    units, source_s, clips, quarantined, rejects = 0, 0.0, 0, set[str](), Counter[str]()
    for records in tables(ledger, asked, ["video", "source_s", "quarantined", "rejects", "clips.clip_id"]):
        units += records.num_rows
        source_s += pc.sum(records["source_s"]).as_py()
        clips += pc.sum(pc.list_value_length(pc.struct_field(records["clips"], "clip_id"))).as_py() or 0
        quarantined.update(records["video"].filter(records["quarantined"]).to_pylist())
        rejects.update(f"{j['stage']}: {j['reason']}" for j in pc.list_flatten(records["rejects"]).to_pylist())
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


def quarantine(out: str) -> list[dict[str, Any]]:
    """Rejects that killed their decoder, one row each: source_id, source_uri, stage, reason, detail, generation."""
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
    """Queue again those of `videos` (by name) that, or a segment of which, were rejected as a whole for `reason`.

    Returns how many; 0 where an earlier retry is not finished yet and there is nothing new.

    Raises:
        BadInput: there is none; names the reasons there are.
    """
    ledger = Ledger.read(out)
    records = read_records(ledger.commit_urls(videos))
    whole = Counter(j["reason"] for r in records for j in r["rejects"] if j["start_s"] is None)
    again = {r["video"] for r in records if any(j["start_s"] is None and j["reason"] == reason for j in r["rejects"])}
    if not again and any(ledger.generation(v) and not ledger.is_complete(v) for v in videos):
        return 0
    if not again:
        known = ", ".join(f"{r} ({n})" for r, n in whole.most_common()) or "none"
        raise BadInput(f"no video in {out!r} was rejected for reason={reason!r}; reasons there are: {known}")
    queue_again(out, ledger, sorted(again))
    return len(again)


def verify(out: str) -> list[str]:
    """Everything that is wrong with a finished dataset, a line each; empty if it is whole.

    Every shard is read: its size, checksum and number of rows are compared with the manifest, clip ids must be unique,
    and the counts must add up. Needs a Ray session.
    """
    manifest = read_manifest(out)
    check = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(check_shard)
    tasks = [check.remote(out, shard) for shard in manifest.shards]
    faults: list[str] = []
    ids: list[str] = []
    with progress_bar(total=len(tasks), unit="shard", desc="verify") as bar:
        for task in tasks:
            shard_faults, shard_ids = ray.get(task)
            faults += shard_faults
            ids += shard_ids
            bar.update()
    return faults + _account_faults(manifest, ids)


def check_shard(out: str, shard: Shard) -> tuple[list[str], list[str]]:
    """(what is wrong with one shard, its clip ids)."""
    url = storage.join(out, shard.path)
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return [f"{shard.path} is missing"], []
    if len(data) != shard.bytes:
        return [f"{shard.path} has {len(data)} bytes, the manifest says {shard.bytes}"], []
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return [f"{shard.path} has another checksum than the manifest says"], []
    ids = pq.read_table(io.BytesIO(data), columns=["clip_id"])["clip_id"].to_pylist()
    wrong = [f"{shard.path} has {len(ids)} rows, the manifest says {shard.rows}"] if len(ids) != shard.rows else []
    return wrong, ids


def _account_faults(manifest: Manifest, ids: list[str]) -> list[str]:
    counts, faults = manifest.counts, []
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        faults.append(f"{len(twice)} clip ids occur more than once, e.g. {twice[0]}")
    if counts["sources"] != counts["accepted"] + counts["rejected"]:
        faults.append(f"sources {counts['sources']} != accepted {counts['accepted']} + rejected {counts['rejected']}")
    if len(ids) != counts["clips"]:
        faults.append(f"{len(ids)} clips in the shards, the manifest counts {counts['clips']}")
    if manifest.content_digest() != manifest.digest:
        faults.append("the manifest's digest is not that of its content")
    return faults


def status_text(found: Status, out: str) -> str:
    """`status` for a person."""
    of = "" if found.videos is None else f" of {found.videos}"
    lines = [
        f"{out}: {'finished' if found.finished else 'not finished'}",
        f"videos committed: {found.complete}{of}; {found.begun} more in part; {found.units} commit records",
        f"source video: {found.source_hours:.3f} h; clips stored before the gates: {found.clips}",
        f"quarantined: {found.quarantined}",
        *(f"  {n} {reason}" for reason, n in found.rejects.items()),
    ]
    return "\n".join(lines)


def funnel_text(counts: dict[str, Any]) -> str:
    """The yield by stage and reason: what came in, what each stage took away and why, what is left."""
    by_stage = counts["segments_rejected_by_reason"]

    def lines(stage: str) -> list[str]:
        return [f"    - {n:>7} {stage}: {reason}" for reason, n in by_stage.get(stage, {}).items()]

    share = counts["clips"] / counts["windows"] if counts["windows"] else 0.0
    return "\n".join(
        [
            f"  {counts['sources']:>9} videos, {counts['source_hours']:.3f} h",
            *(line for stage in ("fetch", "decode", "shots") for line in lines(stage)),
            f"  {counts['windows']:>9} windows",
            *(line for stage in ("screen", "stabilize", "gates") for line in lines(stage)),
            f"  {counts['clips']:>9} clips ({share:.1%} of the windows)",
        ]
    )
