"""Sources to dataset, in two phases.

Phase 1, on Ray Data: one task a unit (a video, or a segment of a long one) decodes, stabilizes and cuts it, writes its
clips' pixels under a name of this attempt, then one commit record with their scores, put only if there is none. Units
without clips commit too. Phase 2 (`pack`) applies the bounds to the scores, packs what passes, shuffled, into shards,
and writes the manifest last. A killed job, run again, skips what is committed.

Every video is accepted (it gave clips) or rejected (with a reason): the sum is asserted before the manifest is written.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import time
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import pyarrow.compute as pc
import ray
from ray.util.annotations import RayDeprecationWarning

from cluster import logs, prometheus, storage
from cluster.deletion import purge, read_deleted
from cluster.fetch import local_copy
from cluster.judging import columns_for
from cluster.pack import Packing, pack
from cluster.placement import decode_labels
from cluster.progress import SourceHours, quiet_ray_data
from cluster.records import as_table, compact, tables
from cluster.scenes import worker_classifier
from cluster.shards import (
    MANIFEST,
    Manifest,
    clip_row,
    read_manifest,
    work_digest,
    write_manifest,
)
from cluster.sources import Source, Sources
from cluster.units import Ledger, Unit, Videos, commit_url
from vgan.config import DecodeConfig, VideoConfig
from vgan.errors import BadInput, BadVideo
from vgan.records import Clip, Reject, clip_id
from vgan.video.child import Decoder
from vgan.video.clips import clips_from_video
from vgan.video.decode import Probe

SEGMENT_CLIPS = 1_000_000  # clip numbers of one segment start this far from those of the segment before
MAX_SEGMENTS = 1000  # a week of video at ten minutes each; the last one takes the rest
WINDOW = 65536  # units that Ray Data is given at a time; between two of them records are moved together
KILLED_RETRIES = 2  # where the decoder was killed from outside, which is no fault of the video
DECODER_DIED = frozenset({"crashed", "timeout", "out_of_memory", "killed"})  # such a video is quarantined


def prepare(
    sources: Sequence[Source], out: str, config: VideoConfig, packing: Packing, *, replace: bool = False
) -> Manifest:
    """Make the dataset at `out` from `sources`, or finish it if an earlier run was cut off. Needs a Ray session.

    Args:
        sources: videos, each with a unique source_id.
        out: url of the dataset's folder.
        config: decode, shots, screen, stabilization, clip and gate settings.
        packing: order, size and codec of the shards.
        replace: pack anew even if a finished dataset stands there, of the same or other sources, gates or packing.

    Raises:
        BadInput: no video gave a clip, `out` holds another dataset, or is not shared by all nodes.
    """
    if finished := already_prepared(sources, out, config, packing, replace=replace):
        return finished
    listed, deleted = Sources.of(sources), read_deleted(out)
    kept, gone = listed.split_by(deleted)
    videos, ledger = videos_by_name(kept, config), Ledger.read(out)
    if not storage.honours_create(out):
        print(f"{out}: this store has no put-if-absent; doubled work is equal and does no harm", flush=True)
    _say_what_is_done(ledger, videos)
    with SourceHours(ledger.open_units(videos)) as progress:
        while units := ledger.open_units(videos):  # the first segment of a long video tells of the others
            for start in range(0, len(units), WINDOW):
                _run_units(units[start : start + WINDOW], out, config, progress)
                compact(out)
            ledger = Ledger.read(out)
            if ledger.open_units(videos) == units:
                raise BadInput(f"what the workers wrote is not seen at {out!r}: out= must be a place all nodes share")
    inputs = _inputs_digest(listed, deleted, ledger, config, packing)
    records = chain(tables(ledger, videos, columns_for(config)), [as_table([_deleted_record(s) for s in gone])])
    manifest = pack(records, listed, out, config, packing, inputs)
    write_manifest(manifest, out)
    purge(out, manifest, deleted)
    return manifest


def _deleted_record(source: Source) -> dict[str, Any]:
    """What stands for the commit record of a video on the deletion list, which is not touched: a reject like others."""
    return {
        "source": asdict(source),
        "source_s": 0.0,
        "rejects": [asdict(Reject(start_s=None, stage="fetch", reason="deleted", detail="on the deletion list"))],
        "quarantined": False,
        "data": None,
        "clips": {},
    }


def already_prepared(
    sources: Sequence[Source], out: str, config: VideoConfig, packing: Packing, *, replace: bool = False
) -> Manifest | None:
    """The finished dataset that the same arguments of `prepare` would make, if it stands at `out`.

    Raises:
        BadInput: another one stands there, and it must not be replaced.
    """
    if not storage.exists(storage.join(out, MANIFEST)):
        return None
    manifest = read_manifest(out)
    inputs = _inputs_digest(sources, read_deleted(out), Ledger.read(out), config, packing)
    if manifest.inputs == inputs and not replace:
        print(f"already prepared: {out}", flush=True)
        return manifest
    if manifest.config["work_digest"] != work_digest(config):
        raise BadInput(f"{out!r} holds a dataset made with other settings: choose another out= or remove it")
    if not replace:
        raise BadInput(
            f"{out!r} holds a dataset of other sources, gates, seed, shard size, codec or deletion list: "
            "choose another out= or replace=true"
        )
    return None


def videos_by_name(sources: Sequence[Source], config: VideoConfig) -> Videos:
    """The videos under the names that their work goes by with these settings."""
    return Videos.named(Sources.of(sources), work_digest(config))


def _inputs_digest(
    sources: Sequence[Source], deleted: set[str], ledger: Ledger, config: VideoConfig, packing: Packing
) -> str:
    """16 hex digits that tell whether the same call would make the same dataset."""
    videos = videos_by_name(sources, config)
    order = pc.sort_indices(videos.names)
    work = hashlib.sha256(b"[\n  [\n")  # of [videos, settings] as canonical JSON, never in memory as a whole
    for number, (video, source) in enumerate(videos.rows(order)):
        told = [value or "" for value in source.credits.values()] if any(source.credits.values()) else []
        gone = ["deleted"] if source.names & deleted else []
        entry = [video, ledger.generation(video), source.label or "", source.split or "", *told, *gone]
        work.update(b",\n" * bool(number) + _indented(entry, 4))
    settings = [packing.seed, packing.shard_rows(config.clip), packing.codec, asdict(config.gates)]
    if config.scene.sha256:
        settings += [sorted(config.scene.keep), config.scene.threshold]
    work.update(b"\n  ],\n" + _indented(settings, 2) + b"\n]\n")
    return work.hexdigest()[:16]


def _indented(value: Any, depth: int) -> bytes:
    """Canonical JSON of a value as it stands inside another's, without the last line's end."""
    lines = storage.json_bytes(value).splitlines()
    return b"\n".join(b" " * depth + line for line in lines)


def _say_what_is_done(ledger: Ledger, videos: Videos) -> None:
    committed, segments = ledger.progress(videos)
    done = int(((segments > 0) & (committed == segments)).sum())
    if done:
        print(f"{done} videos are committed by an earlier run; {len(videos) - done} to go", flush=True)


# ---- phase 1: one unit -------------------------------------------------------------------------------------------


def _run_units(units: list[Unit], out: str, config: VideoConfig, progress: SourceHours) -> None:
    """Commit every unit, on Ray Data, showing progress."""
    quiet_ray_data()
    ray.data.DataContext.get_current().execution_options.label_selector = decode_labels()
    # A block is a task. Ray Data takes about 0.13 s from one task of a worker to the next, as long as 80 frames take,
    # so short videos share one (of 408 UCF101 videos on two cores: 0.84 of the speed of plain processes with four in
    # a task, 0.93 with eight); 4096 blocks are what it schedules with ease.
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))  # none yet where decode nodes come when asked for
    num_blocks = min(4096, max(min(len(units), 8 * num_cpus), len(units) // 8))
    rows = ray.data.from_items([asdict(u) for u in units], override_num_blocks=num_blocks)
    gpus = config.scene.gpus if config.scene.sha256 and config.scene.gpus else None
    with warnings.catch_warnings():  # the argument that bounds retries has no successor yet; the default is for ever
        warnings.simplefilter("ignore", RayDeprecationWarning)
        share = {"num_cpus": 1, "num_gpus": gpus}
        results = rows.map(commit_or_tell, fn_args=(out, config), **share, max_retries=2)  # 1:1, decode, SIFT bound
    for row in results.iter_rows():
        if row["fault"]:
            raise BadInput(row["fault"])
        progress.update(row)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one unit gave."""

    clips: Sequence[Clip] = ()
    rejects: Sequence[Reject]
    probe: Probe | None = None
    decoder: str = ""
    segments: int = 1
    source_s: float = 0.0  # seconds of source video dealt with
    committed: bool = False  # by an earlier attempt: nothing was decoded

    def lost_for(self, reasons: frozenset[str]) -> bool:
        """Whether decoding ended for one of these reasons."""
        return any(r.stage == "decode" and r.reason in reasons for r in self.rejects)


def commit_or_tell(row: dict[str, Any], out: str, config: VideoConfig) -> dict[str, Any]:
    """`commit_unit` for `Dataset.map`: what the user can mend (a full disk, refused credentials) comes back as
    a column, for Ray Data does not hand the cause of an exception through to the driver."""
    try:
        return commit_unit(row, out, config) | {"fault": ""}
    except BadInput as fault:
        return {"clips": 0, "windows": 0, "source_s": 0.0, "bytes": 0.0, "fault": str(fault)}


def commit_unit(row: dict[str, Any], out: str, config: VideoConfig) -> dict[str, Any]:
    """Turn one unit into committed clips. Returns counts for the progress bar."""
    started = time.monotonic()
    unit = Unit(**row | {"source": Source(**row["source"])})
    run = prometheus.run_of(out)
    logs.work_on(run, unit.name)
    try:
        with local_copy(unit.source) as path:
            for _ in range(1 + KILLED_RETRIES):
                found = decode_unit(path, unit, out, config)
                if not found.lost_for(frozenset({"killed"})):
                    break
    except BadVideo as fault:
        found = Found(rejects=[_whole(fault)], segments=unit.segments or 1)
    url = commit_url(out, unit, found.segments)
    if not found.committed:
        record = {
            "video": unit.video,
            "segment": unit.segment,
            "segments": found.segments,
            "settings": work_digest(config),
            "source": asdict(unit.source),
            "probe": found.probe and asdict(found.probe),
            "decoder": found.decoder,
            "source_s": found.source_s,
            "rejects": [asdict(r) for r in found.rejects],
            "quarantined": not found.clips and found.lost_for(DECODER_DIED),
            "version": importlib.metadata.version("scene-dynamics"),
            "seconds": round(time.monotonic() - started, 3),
            **_write_clips(unit, found, out, config),
        }
        if storage.write_new(url, storage.json_bytes(record)):
            _count(record, len(found.clips), run)
    return {
        "clips": len(found.clips),
        "windows": len(found.clips) + sum(r.start_s is not None for r in found.rejects),
        "source_s": found.source_s,
        "bytes": (unit.source.bytes or 0) / found.segments,
    }


def decode_unit(path: Path, unit: Unit, out: str, config: VideoConfig) -> Found:
    """Decode one unit and cut it into clips with their scores; nothing of one that is committed already."""
    decoder = worker_decoder(config.decode)
    try:
        probe = decoder.probe(path)
    except BadVideo as fault:
        return Found(rejects=[_whole(fault)], segments=unit.segments or 1)
    segments = unit.segments or num_segments(probe.duration_s, config.decode.segment_s)
    start_s, end_s, source_s = segment_span(probe.duration_s, unit.segment, segments)
    if storage.exists(commit_url(out, unit, segments)):  # by an earlier attempt at this task, which died after it
        return Found(rejects=[], segments=segments, source_s=source_s, committed=True)
    frames = decoder.frames(path, start_s, end_s, native=config.stabilize.preset == "reference")
    cap = math.ceil(config.clip.max_per_video / segments)
    capped = replace(config, clip=replace(config.clip, max_per_video=cap))
    items = list(_looked_at(clips_from_video(frames, capped), config))
    return Found(
        clips=[item for item in items if isinstance(item, Clip)],
        rejects=[item for item in items if isinstance(item, Reject)],
        probe=probe,
        decoder=decoder.backend,
        segments=segments,
        source_s=source_s if items else 0.0,  # a header may promise more than there is
    )


def _looked_at(items: Iterable[Clip | Reject], config: VideoConfig) -> Iterable[Clip | Reject]:
    """The same items, clips with their scenes if there is a classifier."""
    if not config.scene.sha256:
        return items
    from vgan.scenes.scoring import scored  # with torch

    return scored(items, worker_classifier(config.scene.weights, config.scene.sha256), config.scene)


def _whole(fault: BadVideo) -> Reject:
    return Reject(start_s=None, stage=fault.stage, reason=fault.reason, detail=fault.detail)


@functools.lru_cache(maxsize=1)
def worker_decoder(config: DecodeConfig) -> Decoder:
    """This worker process's own decoding child, kept from video to video: starting one costs as much as 100 frames."""
    cv2.setNumThreads(1)  # a task has one core
    return Decoder(config)


def num_segments(duration_s: float | None, segment_s: float) -> int:
    """Into how many equal segments a video is split; one if its duration is not known. A header may claim anything."""
    return min(MAX_SEGMENTS, max(1, round((duration_s or 0) / segment_s)))


def segment_span(duration_s: float | None, segment: int, segments: int) -> tuple[float, float, float]:
    """(start, end, length) of a segment in seconds from the video's first frame; the last one has no end."""
    length_s = (duration_s or 0) / segments
    return segment * length_s, (segment + 1) * length_s if segment + 1 < segments else math.inf, length_s


def _write_clips(unit: Unit, found: Found, out: str, config: VideoConfig) -> dict[str, Any]:
    """Write one unit's pixels under a name of this attempt; the commit record says which attempt counts.

    Pixels lie one clip after another, raw, so that packing reads exactly the clips it wants.
    """
    if not found.clips:
        return {"data": None, "clips": {}}
    source, digest = unit.source, work_digest(config)
    lineage = {"source_id": source.source_id, "source_uri": source.uri, "label": None, "split": None}
    rows = []
    for number, clip in enumerate(found.clips, start=unit.segment * SEGMENT_CLIPS):
        name = clip_id(source.source_id, number, clip.start_s, digest)
        rows.append(clip_row(clip, clip_id=name, decoder=found.decoder, **lineage))
    pixels = [row.pop("frames") for row in rows]
    data = f"work/units/{unit.name}-{uuid.uuid4().hex[:8]}.frames"
    storage.write_bytes(storage.join(out, data), b"".join(pixels))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {"data": data, "clips": columns | {"crc32": [zlib.crc32(p) for p in pixels]}}


def _count(record: dict[str, Any], num_clips: int, run: str) -> None:
    outcome = "quarantined" if record["quarantined"] else "clips" if num_clips else "no_clips"
    prometheus.add("scene_prepare_units_total", 1, run=run, outcome=outcome)
    prometheus.add("scene_prepare_source_seconds_total", record["source_s"], run=run)
    prometheus.add("scene_prepare_clips_total", num_clips, run=run)
    for (stage, reason), num in Counter((r["stage"], r["reason"]) for r in record["rejects"]).items():
        prometheus.add("scene_prepare_rejects_total", num, run=run, stage=stage, reason=reason)
