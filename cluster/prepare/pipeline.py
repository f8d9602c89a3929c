"""Dataset preparation: from source videos to a dataset, in two phases.

Phase 1 runs on Ray Data with one task per unit (a video, or a segment of a long one). It decodes, stabilizes and cuts
the unit into clips, writes their pixels under a name unique to the attempt, then puts one commit record with the clips'
scores if none exists yet. Units without clips are committed too. Phase 2 (`pack_shards`) applies the gates to the
scores, packs the passing clips in shuffled order into shards, and writes the manifest last. Running a killed job again
skips committed units. Shards are never changed: another packing writes a snapshot of its own, and the older dataset
stays readable until the new manifest replaces its own.

Every video is either accepted (it has clips) or rejected with a reason; the sum is asserted before the manifest is
written.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
from ray.util.annotations import RayDeprecationWarning

from cluster.dataset.deletion_list import read_deleted
from cluster.dataset.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    remove_old_snapshots,
    work_digest,
    write_manifest,
)
from cluster.observability.progress_bar import silence_ray_data
from cluster.prepare.commit_records import compact_records, iter_record_tables, to_table
from cluster.prepare.fetch_breaker import FetchBreaker
from cluster.prepare.ledger import Ledger
from cluster.prepare.packing import PackingConfig, pack_shards
from cluster.prepare.process_unit import commit_reject, process_unit_or_error
from cluster.prepare.progress import SourceHours
from cluster.prepare.purge import purge
from cluster.prepare.selection import required_columns
from cluster.prepare.work_units import VideoTable, WorkUnit, WorkUnitTable
from cluster.runtime.placement import decode_labels
from cluster.sources.config import DEFAULT_FETCH, FetchConfig
from cluster.sources.manifest import Source, Sources
from cluster.storage.conditional_write import supports_put_if_absent
from cluster.storage.files import exists, json_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.records import Reject
from vgan.renamed_keys import downgrade
from vgan.video.config import VideoConfig

WINDOW = 65536  # units per Ray Data execution; records are compacted after each


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparePlan:
    """Arguments of one run of `prepare`, and what is derived from them once."""

    out: str  # url of the dataset's folder
    config: VideoConfig
    packing: PackingConfig
    fetch: FetchConfig
    overwrite: bool
    sources: Sources
    deleted: frozenset[str]  # names on the deletion list of `out`
    videos: VideoTable  # all sources by work name
    remaining: VideoTable  # those not on the deletion list


def make_plan(
    sources: Sequence[Source],
    out: str,
    config: VideoConfig,
    packing: PackingConfig,
    *,
    fetch: FetchConfig = DEFAULT_FETCH,
    overwrite: bool = False,
) -> PreparePlan:
    """Read the deletion list of `out` and name the videos, for `find_finished` and `prepare_dataset`.

    Args:
        sources: videos, each with a unique source_id.
        out: url of the dataset's folder.
        config: settings of decoding, shot detection, screening, stabilization, clips, gates and the scene filter.
        packing: order, size and codec of the shards.
        fetch: limits on downloads; not part of the plan's digests.
        overwrite: pack again even if `out` holds a finished dataset, of the same or other sources, gates or packing.
    """
    listed, deleted = Sources.of(sources), frozenset(read_deleted(out))
    videos = name_videos(listed, config)
    return PreparePlan(
        out=out,
        config=config,
        packing=packing,
        fetch=fetch,
        overwrite=overwrite,
        sources=listed,
        deleted=deleted,
        videos=videos,
        remaining=videos.without(deleted),
    )


def prepare(
    sources: Sequence[Source],
    out: str,
    config: VideoConfig,
    packing: PackingConfig,
    *,
    fetch: FetchConfig = DEFAULT_FETCH,
    overwrite: bool = False,
) -> Manifest:
    """Prepare the dataset at `out` from `sources`, or resume an interrupted run. Needs a Ray session.

    The arguments are those of `make_plan`, the errors those of `find_finished` and `prepare_dataset`.
    """
    plan = make_plan(sources, out, config, packing, fetch=fetch, overwrite=overwrite)
    return find_finished(plan) or prepare_dataset(plan)


def find_finished(plan: PreparePlan) -> Manifest | None:
    """Return the manifest at `plan.out` if an equal plan made it, or None if there is work to do. Needs no Ray.

    Raises:
        InputError: `plan.out` holds another dataset, made with other settings or not to be overwritten.
    """
    out = plan.out
    if not exists(join_url(out, MANIFEST)):
        return None
    manifest = read_manifest(out)
    if not plan.overwrite and manifest.inputs == inputs_digest(plan, Ledger.read(out)):
        print(f"already prepared: {out}", flush=True)
        remove_old_snapshots(manifest, out)  # left by a run that was killed after it wrote the manifest
        return manifest
    if manifest.config["work_digest"] != work_digest(plan.config):
        raise InputError(f"{out!r} holds a dataset made with other settings: choose another out= or remove it")
    if not plan.overwrite:
        raise InputError(
            f"{out!r} holds a dataset of other sources, gates, seed, shard size, codec or deletion list: "
            "choose another out= or set overwrite=true"
        )
    return None


def prepare_dataset(plan: PreparePlan) -> Manifest:
    """Process the units that are not committed, pack the dataset and write its manifest. Needs a Ray session.

    Raises:
        InputError: no video yields a clip, `plan.out` is not shared by all nodes, or too many downloads fail.
    """
    out, videos = plan.out, plan.remaining
    breaker = FetchBreaker(plan.fetch, lambda row: commit_reject(row, out))
    ledger = Ledger.read(out)
    units = ledger.pending_units(videos)
    if not supports_put_if_absent(out):
        print(f"{out}: this store has no put-if-absent; duplicate work is harmless, its results are equal", flush=True)
    _report_resumed(units, videos)
    with SourceHours(units) as progress:
        while units:  # the first segment of a long video sets the number of segments
            for start in range(0, len(units), WINDOW):
                _run_units(units[start : start + WINDOW], plan, progress, breaker)
                compact_records(out)
            breaker.finish()
            ledger = Ledger.read(out)
            units, processed = ledger.pending_units(videos), units
            if units == processed:
                raise InputError(
                    f"the workers' files do not appear at {out!r}: out= must be a folder that all nodes share"
                )
    inputs = inputs_digest(plan, ledger)  # of the last ledger: videos may have been requeued in the meantime
    deleted_sources = plan.sources.partition_by_name(plan.deleted)[1] if plan.deleted else ()
    records = chain(
        iter_record_tables(ledger, videos, required_columns(plan.config)),
        [to_table([_deleted_record(source) for source in deleted_sources])],
    )
    manifest = pack_shards(records, plan.sources, out, plan.config, plan.packing, inputs)
    write_manifest(manifest, out)
    remove_old_snapshots(manifest, out)
    purge(out, manifest, set(plan.deleted))
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


def name_videos(sources: Sequence[Source], config: VideoConfig) -> VideoTable:
    """Map the work names of the videos with these settings to their sources."""
    return VideoTable.named(Sources.of(sources), work_digest(config))


def inputs_digest(plan: PreparePlan, ledger: Ledger) -> str:
    """Return 16 hex digits that change with any input of `prepare` that changes the dataset.

    At 2 million sources this takes 53 s, so a run computes it once: before the work if there is a finished dataset to
    compare with, else after it.
    """
    videos, config, packing = plan.videos, plan.config, plan.packing
    order = pc.sort_indices(videos.names)
    work = hashlib.sha256(b"[\n  [\n")  # of [videos, settings] as canonical JSON, hashed row by row to save memory
    for index, (video, source) in enumerate(videos.rows(order)):
        attribution = [value or "" for value in source.credits.values()] if any(source.credits.values()) else []
        marker = ["deleted"] if source.names & plan.deleted else []
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


def _report_resumed(units: WorkUnitTable, videos: VideoTable) -> None:
    """Print the number of videos that an earlier run has committed completely, if any.

    Args:
        units: the units of `videos` that are not committed.
        videos: the requested videos.
    """
    remaining = len(np.unique(units.columns[:, 0]))
    if done := len(videos) - remaining:
        print(f"{done} videos committed by an earlier run; {remaining} remaining", flush=True)


def _run_units(units: list[WorkUnit], plan: PreparePlan, progress: SourceHours, breaker: FetchBreaker) -> None:
    """Commit every unit in Ray Data tasks, with a progress bar; `breaker` receives the failed downloads.

    Raises:
        InputError: a task failed with an error that the user can correct, or too many downloads fail.
    """
    config = plan.config
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
        results = rows.map(process_unit_or_error, fn_args=(plan.out, config, plan.fetch), **share, max_retries=2)
    for row in results.iter_rows():
        if row["fault"]:
            raise InputError(row["fault"])
        progress.update(row)
        breaker.update(row)
