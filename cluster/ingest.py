"""Sources to dataset, in two phases.

Phase 1, on Ray Data: one task a video decodes, stabilizes and cuts it, writes its clips under a name of this attempt,
then one commit record, put only if there is none. Videos without clips commit too. Phase 2 packs the committed clips,
shuffled, into shards, and writes the manifest last. A killed job, run again, skips what is committed.

Every video is accepted (it gave clips) or rejected (with a reason): the sum is asserted before the manifest is written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import ray
from fsspec import AbstractFileSystem
from ray.util.annotations import RayDeprecationWarning

from cluster import storage
from cluster.pack import pack
from cluster.progress import progress_bar, quiet_ray_data
from cluster.shards import (
    MANIFEST,
    Manifest,
    clip_row,
    clip_schema,
    config_digest,
    frame_bytes,
    read_manifest,
    table_bytes,
    write_manifest,
)
from cluster.sources import Source
from vgan.config import VideoConfig
from vgan.errors import BadInput, BadVideo
from vgan.records import Clip, Reject, clip_id
from vgan.video.child import isolated_frames
from vgan.video.clips import clips_from_video

FETCH_ATTEMPTS, BACKOFF_S = 3, 1.0
HTTP_FINAL = frozenset({403, 404, 410, 451})  # forbidden, missing, gone, unavailable for legal reasons

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """One video's place in the work: its name follows from the video and the settings, never from its position."""

    id: str
    source: Source


def prepare(
    sources: list[Source], out: str, config: VideoConfig, *, seed: int, shard_mb: int, replace: bool = False
) -> Manifest:
    """Make the dataset at `out` from `sources`, or finish it if an earlier run was cut off.

    Args:
        sources: videos, each with a unique source_id.
        out: url of the dataset's folder.
        config: decode, shots, stabilization and clip settings.
        seed: of the shuffle that packs clips into shards.
        shard_mb: raw size of a shard, MB.
        replace: a finished dataset of other sources or order may be replaced.

    Raises:
        BadInput: no video gave a clip, or `out` holds another dataset.
    """
    digest = config_digest(config)
    units = [Unit(unit_id(s, digest), s) for s in sources]
    shard_rows = max(1, shard_mb * 1_000_000 // frame_bytes(config.clip))
    inputs = hashlib.sha256(storage.json_bytes([sorted(u.id for u in units), seed, shard_rows])).hexdigest()[:16]
    finished = _finished(out, digest)
    if finished and finished.config["inputs"] == inputs:
        print(f"already prepared: {out}", flush=True)
        return finished
    if finished and not replace:
        raise BadInput(
            f"{out!r} holds a dataset of other sources, seed or shard size: choose another out= or replace=true"
        )
    done = _committed(out, units)
    _run_units([u for u in units if u.id not in done], out, config, already=len(done))
    records = _read_commits(out, units)
    manifest = pack(records, out, config, seed=seed, shard_rows=shard_rows, inputs=inputs)
    write_manifest(manifest, out)
    return manifest


def unit_id(source: Source, digest: str) -> str:
    """Name of the work on one video: changes with its uri, its size and the settings."""
    key = f"{source.source_id}|{source.uri}|{source.bytes}|{source.label}|{source.split}|{digest}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


# ---- phase 1: one video ------------------------------------------------------------------------------------------


def _run_units(units: list[Unit], out: str, config: VideoConfig, already: int) -> None:
    """Commit every unit, on Ray Data, showing progress."""
    if already:
        print(f"{already} videos are committed by an earlier run; {len(units)} to go", flush=True)
    if not units:
        return
    quiet_ray_data()
    rows = ray.data.from_items(
        [{"unit_id": u.id, **asdict(u.source)} for u in units], override_num_blocks=min(len(units), 4096)
    )  # a block is a task: one video each, up to the number of blocks Ray Data schedules with ease
    with warnings.catch_warnings():  # the argument that bounds retries has no successor yet; the default is for ever
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = rows.map(commit_video, fn_args=(out, config), num_cpus=1, max_retries=2)  # 1:1, decode and SIFT bound
    with progress_bar(total=len(units), unit="video", desc="prepare") as bar:
        clips = seconds = 0.0
        for row in results.iter_rows():
            clips, seconds = clips + row["clips"], seconds + row["video_s"]
            bar.set_postfix_str(f"{int(clips)} clips, {seconds / 3600:.3f} h of clips", refresh=False)
            bar.update()


def commit_video(row: dict[str, Any], out: str, config: VideoConfig) -> dict[str, Any]:
    """Turn one source row into committed clips; suitable for `Dataset.map`. Returns counts for the progress bar."""
    started = time.monotonic()
    source = Source(**{k: row[k] for k in Source.__dataclass_fields__})
    clips: list[Clip] = []
    rejects: list[Reject] = []
    try:
        with local_copy(source.uri) as path:
            for item in clips_from_video(isolated_frames(path, config.decode), config):
                (clips if isinstance(item, Clip) else rejects).append(item)  # type: ignore[arg-type]
    except BadVideo as fault:  # from fetching: clips_from_video turns its own into rejects
        rejects.append(Reject(start_s=None, stage=fault.stage, reason=fault.reason, detail=fault.detail))
    record = {
        "unit_id": row["unit_id"],
        "source": asdict(source),
        "rejects": [asdict(r) for r in rejects],
        "seconds": round(time.monotonic() - started, 3),
        **_write_unit(row["unit_id"], source, clips, out, config),
    }
    storage.write_new(_commit_url(out, row["unit_id"]), storage.json_bytes(record))
    video_s = sum(len(c.frames) for c in clips) / config.clip.fps
    return {"unit_id": row["unit_id"], "clips": len(clips), "video_s": video_s}


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The video as a local file, for the length of the block. Decoders need to seek.

    Raises:
        BadVideo: there is no such file, or this one may not be read. That is final: it becomes a reject.
        OSError: anything else that goes wrong while fetching, after FETCH_ATTEMPTS. It ends the job with the video
            uncommitted, for credentials that ran out or a network that went down must not reject a corpus.
    """
    fs, path = storage.filesystem(uri)
    if "file" in fs.protocol:
        try:
            with open(path, "rb"):
                pass
        except FileNotFoundError as fault:
            raise BadVideo("fetch", "missing", str(fault)) from fault
        except (IsADirectoryError, PermissionError, ValueError) as fault:  # ValueError: a NUL in the name
            raise BadVideo("fetch", "unreadable", str(fault)) from fault
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "video"
        _fetch(fs, path, local)
        yield local


def _fetch(fs: AbstractFileSystem, path: str, local: Path) -> None:
    """Copy a remote file, trying again where the fault may pass."""
    name = storage.redact(path)
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            fs.get_file(path, str(local))
            return
        except FileNotFoundError as fault:
            raise BadVideo("fetch", "missing", str(fault)) from fault
        except aiohttp.ClientResponseError as fault:
            if fault.status in HTTP_FINAL:
                raise BadVideo("fetch", f"http_{fault.status}", fault.message) from fault
            last: Exception = fault
        except PermissionError:  # of an object store: the job's credentials, not this video
            raise
        except (OSError, aiohttp.ClientError) as fault:
            last = fault
        log.warning("fetching %s failed (%s), attempt %d of %d", name, last, attempt, FETCH_ATTEMPTS)
        if attempt < FETCH_ATTEMPTS:
            time.sleep(BACKOFF_S * 2**attempt)
    raise OSError(f"fetching {name} failed {FETCH_ATTEMPTS} times: {last}")


def _write_unit(name: str, source: Source, clips: list[Clip], out: str, config: VideoConfig) -> dict[str, Any]:
    """Write one video's clips under a name of this attempt; the commit record says which attempt counts."""
    if not clips:
        return {"data": None, "clip_ids": []}
    digest = config_digest(config)
    lineage = {"source_id": source.source_id, "source_uri": source.uri, "label": source.label, "split": source.split}
    ids = [clip_id(source.source_id, number, clip.start_s, digest) for number, clip in enumerate(clips)]
    rows = [clip_row(clip, clip_id=i, **lineage) for i, clip in zip(ids, clips, strict=True)]
    data = f"work/units/{name}-{uuid.uuid4().hex[:8]}.parquet"
    storage.write_bytes(storage.join(out, data), table_bytes(pa.Table.from_pylist(rows, clip_schema(config.clip))))
    return {"data": data, "clip_ids": ids}


# ---- commit records ----------------------------------------------------------------------------------------------


def _commit_url(out: str, name: str) -> str:
    return storage.join(out, "work", "commits", f"{name}.json")


def _committed(out: str, units: list[Unit]) -> set[str]:
    names = {
        os.path.basename(url)[: -len(".json")]
        for url in storage.list_files(storage.join(out, "work", "commits"), ".json")
    }
    return names & {u.id for u in units}


def _read_commits(out: str, units: list[Unit]) -> list[dict[str, Any]]:
    """Commit records of exactly these units, in source order."""
    return [storage.read_json(_commit_url(out, u.id)) for u in sorted(units, key=lambda u: u.source.source_id)]


def _finished(out: str, digest: str) -> Manifest | None:
    """The dataset that stands at `out`, if any.

    Raises:
        BadInput: it was made with other settings.
    """
    if not storage.exists(storage.join(out, MANIFEST)):
        return None
    manifest = read_manifest(out)
    if manifest.config["digest"] != digest:
        raise BadInput(f"{out!r} holds a dataset made with other settings: choose another out= or remove it")
    return manifest
