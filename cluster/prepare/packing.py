"""Phase 2 of preparation: write the selected clips, shuffled with a seed, to numbered shards."""

from __future__ import annotations

import datetime
import hashlib
import math
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.dataset.manifest import REJECTS, Manifest, Shard, config_digest, digest_settings, new_snapshot, work_digest
from cluster.dataset.shards import READERS, clip_schema, decode_frames, frame_bytes, shard_bytes
from cluster.observability import prometheus
from cluster.observability.progress_bar import progress_bar
from cluster.prepare.selection import select_clips
from cluster.runtime.placement import decode_labels
from cluster.runtime.provenance import git_commit
from cluster.sources.fetch_errors import UNREACHABLE
from cluster.sources.manifest import ATTRIBUTION_COLUMNS, Sources
from cluster.storage.files import list_names, read_ranges, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.video.config import ClipSpec, VideoConfig
from vgan.video.image_strips import write_strip

MOST_UNDER_WAY = 2048  # shards submitted at a time; the rows of each take 0.4 MB in Ray's object store


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """Packing of clips into shards."""

    seed: int = 0  # of the shuffle
    shard_mb: int = 400  # raw pixels per shard, MB
    codec: str = "raw"  # encoding of frames, one of `shards.CODECS`

    def shard_rows(self, spec: ClipSpec) -> int:
        """Return the number of clips per shard, at least 1."""
        return max(1, self.shard_mb * 1_000_000 // frame_bytes(spec))


def pack_shards(
    records: Iterable[pa.Table],
    sources: Sources,
    out: str,
    config: VideoConfig,
    packing: PackingConfig,
    inputs: str,
) -> Manifest:
    """Write the shards and the table of rejects, and return the manifest, which is not written yet.

    The shards of an older dataset at `out` stay, so that it can be read until the new manifest is written.

    Args:
        records: parts of all sources' commit records, in any order (`records.RECORD`).
        sources: the videos; label, split, license, author, page and tags are taken from here.
        out: url of the dataset's folder.
        config: video settings of the clips, with gates and scene filter.
        packing: order, size and codec of the shards.
        inputs: digest of all inputs, stored in the manifest so that a repeated call finds the work done.

    Raises:
        InputError: no clip passes the gates, or the pixels of a clip are missing.
    """
    chosen = select_clips(records, sources, config)
    accepted, counts = chosen.accepted, chosen.counts
    if not accepted.num_rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
        again = "; retry=unreachable downloads again" if UNREACHABLE in counts["rejected_by_reason"] else ""
        raise InputError(
            f"none of the {counts['sources']} videos yields a clip ({reasons}): nothing to write to {out!r}{again}"
        )
    _check_pixels_exist(accepted, out)
    for reason, num in chosen.num_by_reason.items():
        labels = {"run": prometheus.run_label(out), "stage": "gates", "reason": reason}
        prometheus.increment("scene_prepare_rejects_total", num, **labels)
    shards = _write_shards(accepted, out, new_snapshot(out, inputs), config, packing)
    write_bytes(join_url(out, REJECTS), shard_bytes(chosen.rejects))
    digests = {"digest": config_digest(config), "work_digest": work_digest(config)}
    manifest = Manifest(
        clip=config.clip,
        config={"video": digest_settings(config), "seed": packing.seed, "codec": packing.codec, **digests},
        counts=counts,
        shards=shards,
        inputs=inputs,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
    )
    return replace(manifest, digest=manifest.content_digest())


def _check_pixels_exist(clips: pa.Table, out: str) -> None:
    """Raise InputError if the pixels of a clip are missing; called before anything is written."""
    existing = pa.array(list_names(join_url(out, "work", "units")), pa.string())
    paths = pc.unique(clips["data"].cast(pa.string()))
    names = pc.struct_field(pc.extract_regex(paths, "(?P<name>[^/]*)$"), "name")
    missing = names.filter(pc.invert(pc.is_in(names, value_set=existing)))
    if len(missing):
        raise InputError(
            f"{len(missing)} files of pixels are missing from {out!r}/work/units, the first is {pc.min(missing)}: "
            f"remove {out!r} and prepare it again"
        )


def _write_shards(
    accepted: pa.Table, out: str, folder: str, config: VideoConfig, packing: PackingConfig
) -> list[Shard]:
    """Write all shards in Ray tasks, at most MOST_UNDER_WAY submitted at a time to bound object store memory."""
    write = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(write_shard)
    shards: list[Shard] = []
    pending: deque[Any] = deque()
    num_shards = math.ceil(accepted.num_rows / packing.shard_rows(config.clip))
    with progress_bar(total=num_shards, unit="shard", desc="pack") as bar:

        def finish_first() -> None:
            shards.append(ray.get(pending.popleft()))
            bar.update()

        for index, table in enumerate(iter_shard_tables(accepted, config, packing)):
            if len(pending) == MOST_UNDER_WAY:
                finish_first()
            path = f"{folder}/shard-{index:06d}.parquet"
            pending.append(write.remote(table, out, path, config, packing.codec))
        while pending:
            finish_first()
    return shards


def iter_shard_tables(accepted: pa.Table, config: VideoConfig, packing: PackingConfig) -> Iterator[pa.Table]:
    """Yield the clips of each shard, shuffled with the seed, as tables that share no memory with other clips."""
    order, rows = np.random.default_rng(packing.seed).permutation(accepted.num_rows), packing.shard_rows(config.clip)
    for start in range(0, len(order), rows):
        table = accepted.take(pa.array(order[start : start + rows]))
        yield table.cast(_without_dictionaries(table.schema))


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Replace dictionary types in a schema by their value types."""
    types = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema([f.with_type(type_) for f, type_ in zip(schema, types, strict=True)])


def write_shard(clips: pa.Table, out: str, path: str, config: VideoConfig, codec: str) -> Shard:
    """Gather the pixels of `clips` (rows of `selection.candidate_table`) and write them as one shard, in this order.

    Raises:
        OSError: stored pixels do not match the checksum in their commit record.
    """
    size = frame_bytes(config.clip)
    pixels = bytearray(size * clips.num_rows)
    by_file: dict[str, list[int]] = {}
    for position, name in enumerate(clips["data"].to_pylist()):
        by_file.setdefault(name, []).append(position)
    rows, checksums = clips["row"].to_pylist(), clips["crc32"].to_pylist()

    def gather(name: str) -> None:
        positions = by_file[name]
        ranges = [(rows[p] * size, (rows[p] + 1) * size) for p in positions]
        for p, data in zip(positions, read_ranges(join_url(out, name), ranges), strict=True):
            if zlib.crc32(data) != checksums[p]:
                raise OSError(f"{name}, clip {rows[p]}: the pixels differ from the committed ones (CRC-32 mismatch)")
            pixels[p * size : (p + 1) * size] = data

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(gather, by_file))
    frames = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), clips.num_rows, [None, pa.py_buffer(pixels)])
    if codec == "jpeg":
        frames = pa.array([write_strip(clip) for clip in decode_frames(frames, config.clip)], pa.binary())
    schema = clip_schema(
        config.clip, codec, credited=ATTRIBUTION_COLUMNS[0] in clips.column_names, scenes=config.scene.scored_categories
    )
    table = clips.select([name for name in schema.names if name != "frames"]).combine_chunks()
    table = table.append_column(schema.field("frames"), frames).select(schema.names)
    data = shard_bytes(table.replace_schema_metadata(schema.metadata))
    write_bytes(join_url(out, path), data)
    prometheus.increment("scene_pack_clips_total", clips.num_rows, run=prometheus.run_label(out))
    return Shard(path=path, rows=clips.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
