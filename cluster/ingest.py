"""Dataset preparation: from source videos to a dataset, in two phases.

Phase 1 runs on Ray Data with one task per unit (a video, or a segment of a long one). It decodes, stabilizes and cuts
the unit into clips, writes their pixels under a name unique to the attempt, then puts one commit record with the clips'
scores if none exists yet. Units without clips are committed too. Phase 2 (`pack`) applies the gates to the scores,
packs the passing clips in shuffled order into shards, and writes the manifest last. Running a killed job again skips
committed units.

Every video is either accepted (it has clips) or rejected with a reason; the sum is asserted before the manifest is
written.
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

from cluster.dataset.deletion_list import read_deleted
from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest, work_digest, write_manifest
from cluster.dataset.shards import clip_row
from cluster.judging import columns_for
from cluster.observability import log_format, prometheus
from cluster.observability.progress_bar import silence_ray_data
from cluster.pack import Packing, pack
from cluster.prepare.progress import SourceHours
from cluster.prepare.purge import purge
from cluster.prepare.scene_scores import process_classifier
from cluster.records import as_table, compact, tables
from cluster.runtime.placement import decode_labels
from cluster.sources.download import local_copy
from cluster.sources.manifest import Source, Sources
from cluster.storage.conditional_write import put_if_absent, supports_put_if_absent
from cluster.storage.files import exists, json_bytes, write_bytes
from cluster.storage.urls import join_url
from cluster.units import Ledger, Unit, Videos, commit_url
from vgan.errors import InputError, VideoError
from vgan.records import Clip, Reject, clip_id
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import DecodeConfig, VideoConfig
from vgan.video.decode import VideoMetadata
from vgan.video.isolated_decoder import Decoder

SEGMENT_CLIPS = 1_000_000  # offset between the first clip numbers of consecutive segments
MAX_SEGMENTS = 1000  # a week of video at ten minutes per segment; the last one takes the rest
WINDOW = 65536  # units per Ray Data execution; records are compacted after each
KILLED_RETRIES = 2  # if the decoder was killed from outside, which the video did not cause
DECODER_DIED = frozenset({"crashed", "timeout", "out_of_memory", "killed"})  # reasons that quarantine a video


def prepare(
    sources: Sequence[Source], out: str, config: VideoConfig, packing: Packing, *, replace: bool = False
) -> Manifest:
    """Prepare the dataset at `out` from `sources`, or resume an interrupted run. Needs a Ray session.

    Args:
        sources: videos, each with a unique source_id.
        out: url of the dataset's folder.
        config: settings of decoding, shot detection, screening, stabilization, clips, gates and the scene filter.
        packing: order, size and codec of the shards.
        replace: pack again even if `out` holds a finished dataset, of the same or other sources, gates or packing.

    Raises:
        InputError: no video yields a clip, or `out` holds another dataset or is not shared by all nodes.
    """
    if finished := already_prepared(sources, out, config, packing, replace=replace):
        return finished
    listed, deleted = Sources.of(sources), read_deleted(out)
    remaining, deleted_sources = listed.split_by(deleted)
    videos, ledger = videos_by_name(remaining, config), Ledger.read(out)
    if not supports_put_if_absent(out):
        print(f"{out}: this store has no put-if-absent; duplicate work is harmless, its results are equal", flush=True)
    _report_resumed(ledger, videos)
    with SourceHours(ledger.open_units(videos)) as progress:
        while units := ledger.open_units(videos):  # the first segment of a long video sets the number of segments
            for start in range(0, len(units), WINDOW):
                _run_units(units[start : start + WINDOW], out, config, progress)
                compact(out)
            ledger = Ledger.read(out)
            if ledger.open_units(videos) == units:
                raise InputError(
                    f"the workers' files do not appear at {out!r}: out= must be a folder that all nodes share"
                )
    inputs = _inputs_digest(listed, deleted, ledger, config, packing)
    records = chain(
        tables(ledger, videos, columns_for(config)), [as_table([_deleted_record(s) for s in deleted_sources])]
    )
    manifest = pack(records, listed, out, config, packing, inputs)
    write_manifest(manifest, out)
    purge(out, manifest, deleted)
    return manifest


def _deleted_record(source: Source) -> dict[str, Any]:
    """Build the commit record of a video on the deletion list: a reject. The video itself is not read."""
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
    """Return the manifest at `out` if the same arguments of `prepare` made it, or None if there is work to do.

    Raises:
        InputError: `out` holds another dataset, made with other settings or not to be replaced.
    """
    if not exists(join_url(out, MANIFEST)):
        return None
    manifest = read_manifest(out)
    inputs = _inputs_digest(sources, read_deleted(out), Ledger.read(out), config, packing)
    if manifest.inputs == inputs and not replace:
        print(f"already prepared: {out}", flush=True)
        return manifest
    if manifest.config["work_digest"] != work_digest(config):
        raise InputError(f"{out!r} holds a dataset made with other settings: choose another out= or remove it")
    if not replace:
        raise InputError(
            f"{out!r} holds a dataset of other sources, gates, seed, shard size, codec or deletion list: "
            "choose another out= or set replace=true"
        )
    return None


def videos_by_name(sources: Sequence[Source], config: VideoConfig) -> Videos:
    """Map the work names of the videos with these settings to their sources."""
    return Videos.named(Sources.of(sources), work_digest(config))


def _inputs_digest(
    sources: Sequence[Source], deleted: set[str], ledger: Ledger, config: VideoConfig, packing: Packing
) -> str:
    """Return 16 hex digits that change with any input of `prepare` that changes the dataset."""
    videos = videos_by_name(sources, config)
    order = pc.sort_indices(videos.names)
    work = hashlib.sha256(b"[\n  [\n")  # of [videos, settings] as canonical JSON, hashed row by row to save memory
    for index, (video, source) in enumerate(videos.rows(order)):
        attribution = [value or "" for value in source.credits.values()] if any(source.credits.values()) else []
        marker = ["deleted"] if source.names & deleted else []
        entry = [video, ledger.generation(video), source.label or "", source.split or "", *attribution, *marker]
        work.update(b",\n" * bool(index) + _indented(entry, 4))
    settings = [packing.seed, packing.shard_rows(config.clip), packing.codec, asdict(config.gates)]
    if config.scene.sha256:
        settings += [sorted(config.scene.keep), config.scene.threshold]
    work.update(b"\n  ],\n" + _indented(settings, 2) + b"\n]\n")
    return work.hexdigest()[:16]


def _indented(value: Any, depth: int) -> bytes:
    """Encode a value as canonical JSON indented by `depth` spaces, without the final newline."""
    lines = json_bytes(value).splitlines()
    return b"\n".join(b" " * depth + line for line in lines)


def _report_resumed(ledger: Ledger, videos: Videos) -> None:
    """Print the number of videos that an earlier run has committed, if any."""
    committed, segments = ledger.progress(videos)
    done = int(((segments > 0) & (committed == segments)).sum())
    if done:
        print(f"{done} videos committed by an earlier run; {len(videos) - done} remaining", flush=True)


# ---- phase 1: one unit -------------------------------------------------------------------------------------------


def _run_units(units: list[Unit], out: str, config: VideoConfig, progress: SourceHours) -> None:
    """Commit every unit in Ray Data tasks, with a progress bar.

    Raises:
        InputError: a task failed with an error that the user can correct.
    """
    silence_ray_data()
    ray.data.DataContext.get_current().execution_options.label_selector = decode_labels()
    # A block is a task. Ray Data needs about 0.13 s between two tasks of a worker, the time of 80 frames, so short
    # videos share a task (408 UCF101 videos on two cores: 0.84 of the speed of plain processes with four videos per
    # task, 0.93 with eight). Ray Data schedules 4096 blocks without trouble.
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))  # 0 before autoscaled decode nodes have started
    num_blocks = min(4096, max(min(len(units), 8 * num_cpus), len(units) // 8))
    rows = ray.data.from_items([asdict(u) for u in units], override_num_blocks=num_blocks)
    gpus = config.scene.gpus if config.scene.sha256 and config.scene.gpus else None
    with warnings.catch_warnings():  # max_retries is deprecated without a replacement; the default is unlimited retries
        warnings.simplefilter("ignore", RayDeprecationWarning)
        share = {"num_cpus": 1, "num_gpus": gpus}
        # One result per unit; bound by decoding and SIFT.
        results = rows.map(commit_or_tell, fn_args=(out, config), **share, max_retries=2)
    for row in results.iter_rows():
        if row["fault"]:
            raise InputError(row["fault"])
        progress.update(row)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of one unit: clips, rejects and the video's properties."""

    clips: Sequence[Clip] = ()
    rejects: Sequence[Reject]
    probe: VideoMetadata | None = None
    decoder: str = ""
    segments: int = 1
    source_s: float = 0.0  # processed source video, seconds
    committed: bool = False  # by an earlier attempt: nothing was decoded

    def lost_for(self, reasons: frozenset[str]) -> bool:
        """Return True if decoding failed for one of these reasons."""
        return any(r.stage == "decode" and r.reason in reasons for r in self.rejects)


def commit_or_tell(row: dict[str, Any], out: str, config: VideoConfig) -> dict[str, Any]:
    """Run `commit_unit` for `Dataset.map` and return errors that the user can correct in the column `fault`.

    Ray Data does not pass the cause of an exception (a full disk, refused credentials) to the driver.
    """
    try:
        return commit_unit(row, out, config) | {"fault": ""}
    except InputError as error:
        return {"clips": 0, "windows": 0, "source_s": 0.0, "bytes": 0.0, "fault": str(error)}


def commit_unit(row: dict[str, Any], out: str, config: VideoConfig) -> dict[str, Any]:
    """Process one unit and commit its clips.

    Args:
        row: fields of a `Unit`, its source as a dict.
        out: dataset folder.
        config: video settings.

    Returns:
        Counts for the progress bar: clips, windows, source_s, bytes.

    Raises:
        InputError: an error of storage that the user can correct.
    """
    started = time.monotonic()
    unit = Unit(**row | {"source": Source(**row["source"])})
    run = prometheus.run_label(out)
    log_format.set_log_context(run, unit.name)
    try:
        with local_copy(unit.source) as path:
            for _ in range(1 + KILLED_RETRIES):
                result = decode_unit(path, unit, out, config)
                if not result.lost_for(frozenset({"killed"})):
                    break
    except VideoError as error:
        result = Found(rejects=[_whole_video_reject(error)], segments=unit.segments or 1)
    url = commit_url(out, unit, result.segments)
    if not result.committed:
        record = {
            "video": unit.video,
            "segment": unit.segment,
            "segments": result.segments,
            "settings": work_digest(config),
            "source": asdict(unit.source),
            "probe": result.probe and asdict(result.probe),
            "decoder": result.decoder,
            "source_s": result.source_s,
            "rejects": [asdict(r) for r in result.rejects],
            "quarantined": not result.clips and result.lost_for(DECODER_DIED),
            "version": importlib.metadata.version("scene-dynamics"),
            "seconds": round(time.monotonic() - started, 3),
            **_write_clips(unit, result, out, config),
        }
        if put_if_absent(url, json_bytes(record)):
            _count(record, len(result.clips), run)
    return {
        "clips": len(result.clips),
        "windows": len(result.clips) + sum(r.start_s is not None for r in result.rejects),
        "source_s": result.source_s,
        "bytes": (unit.source.bytes or 0) / result.segments,
    }


def decode_unit(path: Path, unit: Unit, out: str, config: VideoConfig) -> Found:
    """Decode one unit and cut it into clips with their scores; skip a unit that is already committed."""
    decoder = worker_decoder(config.decode)
    try:
        probe = decoder.probe(path)
    except VideoError as error:
        return Found(rejects=[_whole_video_reject(error)], segments=unit.segments or 1)
    segments = unit.segments or num_segments(probe.duration_s, config.decode.segment_s)
    start_s, end_s, source_s = segment_span(probe.duration_s, unit.segment, segments)
    if exists(commit_url(out, unit, segments)):  # by an earlier attempt, which died after committing
        return Found(rejects=[], segments=segments, source_s=source_s, committed=True)
    frames = decoder.frames(path, start_s, end_s, native=config.stabilize.preset == "reference")
    cap = math.ceil(config.clip.max_per_video / segments)
    capped = replace(config, clip=replace(config.clip, max_per_video=cap))
    items = list(_with_scene_scores(extract_clips(frames, capped), config))
    return Found(
        clips=[item for item in items if isinstance(item, Clip)],
        rejects=[item for item in items if isinstance(item, Reject)],
        probe=probe,
        decoder=decoder.backend,
        segments=segments,
        source_s=source_s if items else 0.0,  # a header may claim a duration that the file does not have
    )


def _with_scene_scores(items: Iterable[Clip | Reject], config: VideoConfig) -> Iterable[Clip | Reject]:
    """Add scene scores to the clips if a classifier is configured; rejects pass unchanged."""
    if not config.scene.sha256:
        return items
    from vgan.scenes.scoring import add_scene_scores  # imports torch

    return add_scene_scores(items, process_classifier(config.scene.weights, config.scene.sha256), config.scene)


def _whole_video_reject(error: VideoError) -> Reject:
    """Build the reject of a whole video or segment from the error that ended it."""
    return Reject(start_s=None, stage=error.stage, reason=error.reason, detail=error.detail)


@functools.lru_cache(maxsize=1)
def worker_decoder(config: DecodeConfig) -> Decoder:
    """Return this worker process's decoder child, reused across videos: starting one costs as much as 100 frames."""
    cv2.setNumThreads(1)  # a task has one core
    return Decoder(config)


def num_segments(duration_s: float | None, segment_s: float) -> int:
    """Return the number of equal segments of a video, 1 if its duration is unknown.

    The number is limited to MAX_SEGMENTS because a header may claim any duration.
    """
    return min(MAX_SEGMENTS, max(1, round((duration_s or 0) / segment_s)))


def segment_span(duration_s: float | None, segment: int, segments: int) -> tuple[float, float, float]:
    """Return (start, end, length) of a segment, seconds from the video's first frame; the last one ends at infinity."""
    length_s = (duration_s or 0) / segments
    return segment * length_s, (segment + 1) * length_s if segment + 1 < segments else math.inf, length_s


def _write_clips(unit: Unit, result: Found, out: str, config: VideoConfig) -> dict[str, Any]:
    """Write one unit's pixels under a name unique to this attempt; the commit record names the attempt that is used.

    Pixels are stored raw, clip after clip, so that packing can read single clips by byte range.

    Returns:
        The fields `data` (path of the pixels) and `clips` (columns) of the commit record.
    """
    if not result.clips:
        return {"data": None, "clips": {}}
    source, digest = unit.source, work_digest(config)
    lineage = {"source_id": source.source_id, "source_uri": source.uri, "label": None, "split": None}
    rows = []
    for number, clip in enumerate(result.clips, start=unit.segment * SEGMENT_CLIPS):
        name = clip_id(source.source_id, number, clip.start_s, digest)
        rows.append(clip_row(clip, clip_id=name, decoder=result.decoder, **lineage))
    pixels = [row.pop("frames") for row in rows]
    data = f"work/units/{unit.name}-{uuid.uuid4().hex[:8]}.frames"
    write_bytes(join_url(out, data), b"".join(pixels))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {"data": data, "clips": columns | {"crc32": [zlib.crc32(p) for p in pixels]}}


def _count(record: dict[str, Any], num_clips: int, run: str) -> None:
    """Increment the Prometheus counters for one committed unit."""
    outcome = "quarantined" if record["quarantined"] else "clips" if num_clips else "no_clips"
    prometheus.increment("scene_prepare_units_total", 1, run=run, outcome=outcome)
    prometheus.increment("scene_prepare_source_seconds_total", record["source_s"], run=run)
    prometheus.increment("scene_prepare_clips_total", num_clips, run=run)
    for (stage, reason), num in Counter((r["stage"], r["reason"]) for r in record["rejects"]).items():
        prometheus.increment("scene_prepare_rejects_total", num, run=run, stage=stage, reason=reason)
