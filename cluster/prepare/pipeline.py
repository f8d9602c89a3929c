"""Dataset preparation: from source videos to a dataset, in two phases.

Phase 1 runs on Ray Data with one task per unit (a video, or a segment of a long one). It decodes, stabilizes and cuts
the unit into clips, writes their pixels under a name unique to the attempt, then puts one commit record with the clips'
scores if none exists yet. Units without clips are committed too. Phase 2 (`pack_shards`) applies the gates to the
scores, packs the passing clips in shuffled order into shards, and writes the manifest last. Running a killed job again
skips committed units.

Every video is either accepted (it has clips) or rejected with a reason; the sum is asserted before the manifest is
written.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import pyarrow.compute as pc
import ray
from ray.util.annotations import RayDeprecationWarning

from cluster.dataset.deletion_list import read_deleted
from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest, work_digest, write_manifest
from cluster.observability.progress_bar import silence_ray_data
from cluster.prepare.commit_records import compact_records, iter_record_tables, to_table
from cluster.prepare.ledger import Ledger
from cluster.prepare.packing import PackingConfig, pack_shards
from cluster.prepare.process_unit import process_unit_or_error
from cluster.prepare.progress import SourceHours
from cluster.prepare.purge import purge
from cluster.prepare.selection import required_columns
from cluster.prepare.work_units import VideoTable, WorkUnit
from cluster.runtime.placement import decode_labels
from cluster.sources.manifest import Source, Sources
from cluster.storage.conditional_write import supports_put_if_absent
from cluster.storage.files import exists, json_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.records import Reject
from vgan.renamed_keys import downgrade
from vgan.video.config import VideoConfig

WINDOW = 65536  # units per Ray Data execution; records are compacted after each


def prepare(
    sources: Sequence[Source], out: str, config: VideoConfig, packing: PackingConfig, *, replace: bool = False
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
    if finished := find_finished_dataset(sources, out, config, packing, replace=replace):
        return finished
    listed, deleted = Sources.of(sources), read_deleted(out)
    remaining, deleted_sources = listed.split_by(deleted)
    videos, ledger = name_videos(remaining, config), Ledger.read(out)
    if not supports_put_if_absent(out):
        print(f"{out}: this store has no put-if-absent; duplicate work is harmless, its results are equal", flush=True)
    _report_resumed(ledger, videos)
    with SourceHours(ledger.open_units(videos)) as progress:
        while units := ledger.open_units(videos):  # the first segment of a long video sets the number of segments
            for start in range(0, len(units), WINDOW):
                _run_units(units[start : start + WINDOW], out, config, progress)
                compact_records(out)
            ledger = Ledger.read(out)
            if ledger.open_units(videos) == units:
                raise InputError(
                    f"the workers' files do not appear at {out!r}: out= must be a folder that all nodes share"
                )
    inputs = _inputs_digest(listed, deleted, ledger, config, packing)
    records = chain(
        iter_record_tables(ledger, videos, required_columns(config)),
        [to_table([_deleted_record(s) for s in deleted_sources])],
    )
    manifest = pack_shards(records, listed, out, config, packing, inputs)
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


def find_finished_dataset(
    sources: Sequence[Source], out: str, config: VideoConfig, packing: PackingConfig, *, replace: bool = False
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
            "choose another out= or set overwrite=true"
        )
    return None


def name_videos(sources: Sequence[Source], config: VideoConfig) -> VideoTable:
    """Map the work names of the videos with these settings to their sources."""
    return VideoTable.named(Sources.of(sources), work_digest(config))


def _inputs_digest(
    sources: Sequence[Source], deleted: set[str], ledger: Ledger, config: VideoConfig, packing: PackingConfig
) -> str:
    """Return 16 hex digits that change with any input of `prepare` that changes the dataset."""
    videos = name_videos(sources, config)
    order = pc.sort_indices(videos.names)
    work = hashlib.sha256(b"[\n  [\n")  # of [videos, settings] as canonical JSON, hashed row by row to save memory
    for index, (video, source) in enumerate(videos.rows(order)):
        attribution = [value or "" for value in source.credits.values()] if any(source.credits.values()) else []
        marker = ["deleted"] if source.names & deleted else []
        entry = [video, ledger.generation(video), source.label or "", source.split or "", *attribution, *marker]
        work.update(b",\n" * bool(index) + _indented(entry, 4))
    settings = [
        packing.seed,
        packing.shard_rows(config.clip),
        packing.codec,
        downgrade(asdict(config.filters), "filters."),
    ]
    if config.scene.sha256:
        settings += [sorted(config.scene.keep_categories), config.scene.min_probability]
    work.update(b"\n  ],\n" + _indented(settings, 2) + b"\n]\n")
    return work.hexdigest()[:16]


def _indented(value: Any, depth: int) -> bytes:
    """Encode a value as canonical JSON indented by `depth` spaces, without the final newline."""
    lines = json_bytes(value).splitlines()
    return b"\n".join(b" " * depth + line for line in lines)


def _report_resumed(ledger: Ledger, videos: VideoTable) -> None:
    """Print the number of videos that an earlier run has committed, if any."""
    committed, segments = ledger.progress(videos)
    done = int(((segments > 0) & (committed == segments)).sum())
    if done:
        print(f"{done} videos committed by an earlier run; {len(videos) - done} remaining", flush=True)


def _run_units(units: list[WorkUnit], out: str, config: VideoConfig, progress: SourceHours) -> None:
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
        results = rows.map(process_unit_or_error, fn_args=(out, config), **share, max_retries=2)
    for row in results.iter_rows():
        if row["fault"]:
            raise InputError(row["fault"])
        progress.update(row)
