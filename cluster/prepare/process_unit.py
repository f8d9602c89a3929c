"""One unit of work: fetch, decode, cut, stabilize, score and commit one video or one segment of it."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from cluster.dataset.manifest import work_digest
from cluster.dataset.shards import clip_row
from cluster.observability import log_format, prometheus
from cluster.prepare.scene_scores import process_classifier
from cluster.prepare.work_units import WorkUnit, commit_url
from cluster.sources.config import DEFAULT_FETCH, FetchConfig
from cluster.sources.download import is_remote, local_copy
from cluster.sources.fetch_errors import UNREACHABLE
from cluster.sources.manifest import Source
from cluster.storage.conditional_write import put_if_absent
from cluster.storage.files import exists, json_bytes, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError, VideoError
from vgan.records import Clip, Reject, clip_id
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import DecodeConfig, VideoConfig
from vgan.video.decoding.decode import VideoMetadata
from vgan.video.decoding.isolated_decoder import Decoder

SEGMENT_CLIPS = 1_000_000  # offset between the first clip numbers of consecutive segments
MAX_SEGMENTS = 1000  # a week of video at ten minutes per segment; the last one takes the rest
# Ten minutes of 1920x1080 at 30 frames per second have 37e9. Segments of 4K are shorter: a minute of AV1 takes minutes
# of a core, and a unit that fails is decoded again from its beginning.
SEGMENT_PIXELS = 40e9
MAX_HEADER_FPS = 120.0  # a header may claim any rate
KILLED_RETRIES = 2  # if the decoder was killed from outside, which the video did not cause
# Result of a unit of which nothing was processed.
NOTHING = {
    "clips": 0,
    "windows": 0,
    "source_s": 0.0,
    "bytes": 0.0,
    "remote": False,
    "failure": "",
    "url": "",
    "record": "",
}
DECODER_DIED = frozenset({"crashed", "timeout", "out_of_memory", "killed"})  # reasons that quarantine a video


@dataclass(frozen=True, kw_only=True)
class UnitResult:
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


def process_unit_or_error(row: dict[str, Any], out: str, config: VideoConfig, fetch: FetchConfig) -> dict[str, Any]:
    """Run `process_unit` for `Dataset.map` and return errors that the user can correct in the column `fault`.

    Ray Data does not pass the cause of an exception (a full disk, refused credentials) to the driver.
    """
    try:
        return process_unit(row, out, config, fetch) | {"fault": ""}
    except InputError as error:
        return NOTHING | {"fault": str(error)}


def process_unit(
    row: dict[str, Any], out: str, config: VideoConfig, fetch: FetchConfig = DEFAULT_FETCH
) -> dict[str, Any]:
    """Process one unit and commit its clips; commit nothing if its download fails for a reason that may pass.

    Args:
        row: fields of a `WorkUnit`, its source as a dict.
        out: dataset folder.
        config: video settings.
        fetch: limits on the download.

    Returns:
        Counts for the progress bar: clips, windows, source_s, bytes. `remote` is True unless the video is a local file.
        If nothing was committed: the cause in `failure`, and what `commit_reject` needs in `url` and `record`.

    Raises:
        InputError: an error of storage that the user can correct.
    """
    started = time.monotonic()
    unit = WorkUnit(**row | {"source": Source(**row["source"])})
    run = prometheus.run_label(out)
    log_format.set_log_context(run, unit.name)
    failure = ""
    try:
        with local_copy(unit.source, fetch) as path:
            for _ in range(1 + KILLED_RETRIES):
                result = decode_unit(path, unit, out, config)
                if not result.lost_for(frozenset({"killed"})):
                    break
    except VideoError as error:
        failure = error.detail if error.reason == UNREACHABLE else ""
        result = UnitResult(rejects=[_whole_video_reject(error)], segments=unit.segments or 1)
    url = commit_url(out, unit, result.segments)
    record: dict[str, Any] = {}
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
    if record and not failure:
        _commit(url, record, len(result.clips), run)
    return NOTHING | {
        "clips": len(result.clips),
        "windows": len(result.clips) + sum(r.start_s is not None for r in result.rejects),
        "source_s": result.source_s,
        "bytes": (unit.source.bytes or 0) / result.segments,
        "remote": is_remote(unit.source),
        "failure": failure,
        "url": url if failure else "",
        "record": json_bytes(record).decode() if failure else "",
    }


def commit_reject(row: Mapping[str, Any], out: str) -> None:
    """Commit the reject of a unit whose download failed, from the row that `process_unit` returned."""
    _commit(row["url"], json.loads(row["record"]), 0, prometheus.run_label(out))


def _commit(url: str, record: dict[str, Any], num_clips: int, run: str) -> None:
    """Put a commit record unless one exists, and count it."""
    if put_if_absent(url, json_bytes(record)):
        _count(record, num_clips, run)


def decode_unit(path: Path, unit: WorkUnit, out: str, config: VideoConfig) -> UnitResult:
    """Decode one unit and cut it into clips with their scores; skip a unit that is already committed."""
    decoder = process_decoder(config.decode)
    try:
        probe = decoder.probe(path)
    except VideoError as error:
        return UnitResult(rejects=[_whole_video_reject(error)], segments=unit.segments or 1)
    pixels_per_s = probe.width * probe.height * min(probe.fps or config.clip.fps, MAX_HEADER_FPS)
    segments = unit.segments or num_segments(probe.duration_s, config.decode.segment_s, pixels_per_s)
    start_s, end_s, source_s = segment_bounds(probe.duration_s, unit.segment, segments)
    if exists(commit_url(out, unit, segments)):  # by an earlier attempt, which died after committing
        return UnitResult(rejects=[], segments=segments, source_s=source_s, committed=True)
    frames = decoder.frames(path, start_s, end_s, native=config.stabilize.preset == "reference")
    cap = math.ceil(config.clip.max_per_video / segments)
    capped = replace(config, clip=replace(config.clip, max_per_video=cap))
    items = list(_with_scene_scores(extract_clips(frames, capped), config))
    return UnitResult(
        clips=[item for item in items if isinstance(item, Clip)],
        rejects=[*decoder.damages, *(item for item in items if isinstance(item, Reject))],
        probe=replace(probe, **asdict(decoder.treatment)),
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
def process_decoder(config: DecodeConfig) -> Decoder:
    """Return this worker process's decoder child, reused across videos: starting one costs as much as 100 frames."""
    cv2.setNumThreads(1)  # a task has one core
    return Decoder(config)


def num_segments(duration_s: float | None, segment_s: float, pixels_per_s: float = 0.0) -> int:
    """Return the number of equal segments of a video, 1 if its duration is unknown.

    A segment has a length of about `segment_s` and about SEGMENT_PIXELS at most, which bounds the cost of decoding it.
    The number is limited to MAX_SEGMENTS because a header may claim any duration.
    """
    parts = max((duration_s or 0) / segment_s, (duration_s or 0) * pixels_per_s / SEGMENT_PIXELS)
    return min(MAX_SEGMENTS, max(1, round(parts)))


def segment_bounds(duration_s: float | None, segment: int, segments: int) -> tuple[float, float, float]:
    """Return (start, end, length) of a segment, seconds from the video's first frame; the last one ends at infinity."""
    length_s = (duration_s or 0) / segments
    return segment * length_s, (segment + 1) * length_s if segment + 1 < segments else math.inf, length_s


def _write_clips(unit: WorkUnit, result: UnitResult, out: str, config: VideoConfig) -> dict[str, Any]:
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
