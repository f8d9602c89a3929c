"""Phase 2 of prepare: chosen clips, shuffled by a seed, into shards with fixed names."""

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

from cluster import prometheus, storage
from cluster.judging import choose
from cluster.placement import decode_labels
from cluster.progress import progress_bar
from cluster.runs import git_commit
from cluster.shards import (
    MANIFEST,
    READERS,
    REJECTS,
    Manifest,
    Shard,
    clip_schema,
    config_digest,
    frame_bytes,
    settings_of,
    table_bytes,
    to_frames,
    work_digest,
)
from cluster.sources import CREDITS, Sources
from vgan.config import ClipSpec, VideoConfig
from vgan.errors import BadInput
from vgan.video.strips import write_strip

MOST_UNDER_WAY = 2048  # shards whose rows, 0.4 MB each, are in the object store at a time


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How clips go into shards."""

    seed: int = 0  # of the shuffle
    shard_mb: int = 400  # of raw pixels in a shard
    codec: str = "raw"  # of the frames, one of `shards.CODECS`

    def shard_rows(self, spec: ClipSpec) -> int:
        """Clips in a shard."""
        return max(1, self.shard_mb * 1_000_000 // frame_bytes(spec))


def pack(
    records: Iterable[pa.Table],
    sources: Sources,
    out: str,
    config: VideoConfig,
    packing: Packing,
    inputs: str,
) -> Manifest:
    """Write the shards, the rejects and the manifest's content.

    Args:
        records: parts of all sources' commit records, in any order (`records.RECORD`).
        sources: the videos; label, split, licence, author, page and tags are taken from here.
        out: url of the dataset's folder.
        config: what the clips were made with, and the gates.
        packing: order, size and codec of the shards.
        inputs: digest of what went in, kept so that the same call again finds its work done.

    Raises:
        BadInput: there is no clip at all.
    """
    chosen = choose(records, sources, config)
    accepted, counts = chosen.accepted, chosen.counts
    if not accepted.num_rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
        raise BadInput(f"none of the {counts['sources']} videos gave a clip ({reasons}): nothing to write to {out!r}")
    _check_pixels_are_there(accepted, out)
    for reason, num in chosen.refused.items():
        labels = {"run": prometheus.run_of(out), "stage": "gates", "reason": reason}
        prometheus.add("scene_prepare_rejects_total", num, **labels)
    storage.remove(storage.join(out, MANIFEST))  # from here on the old dataset is gone
    storage.remove(storage.join(out, "shards"))
    shards = _write_shards(accepted, out, config, packing)
    storage.write_bytes(storage.join(out, REJECTS), table_bytes(chosen.rejects))
    digests = {"digest": config_digest(config), "work_digest": work_digest(config)}
    manifest = Manifest(
        clip=config.clip,
        config={"video": settings_of(config), "seed": packing.seed, "codec": packing.codec, **digests},
        counts=counts,
        shards=shards,
        inputs=inputs,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
    )
    return replace(manifest, digest=manifest.content_digest())


def _check_pixels_are_there(clips: pa.Table, out: str) -> None:
    """Raise BadInput if the pixels of a clip are gone, before anything of an older dataset is touched."""
    there = pa.array(storage.list_names(storage.join(out, "work", "units")), pa.string())
    asked = pc.unique(clips["data"].cast(pa.string()))
    names = pc.struct_field(pc.extract_regex(asked, "(?P<name>[^/]*)$"), "name")
    gone = names.filter(pc.invert(pc.is_in(names, value_set=there)))
    if len(gone):
        raise BadInput(
            f"{len(gone)} files of pixels are gone from {out!r}/work/units, {pc.min(gone)} first: remove {out!r} and "
            "prepare it again"
        )


def _write_shards(accepted: pa.Table, out: str, config: VideoConfig, packing: Packing) -> list[Shard]:
    """Write every shard on Ray; only those that are being written are in the object store."""
    write = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(write_shard)
    shards: list[Shard] = []
    under_way: deque[Any] = deque()
    num_shards = math.ceil(accepted.num_rows / packing.shard_rows(config.clip))
    with progress_bar(total=num_shards, unit="shard", desc="pack") as bar:

        def finish_first() -> None:
            shards.append(ray.get(under_way.popleft()))
            bar.update()

        for number, table in enumerate(shard_tables(accepted, config, packing)):
            if len(under_way) == MOST_UNDER_WAY:
                finish_first()
            path = f"shards/shard-{number:06d}.parquet"
            under_way.append(write.remote(table, out, path, config, packing.codec))
        while under_way:
            finish_first()
    return shards


def shard_tables(accepted: pa.Table, config: VideoConfig, packing: Packing) -> Iterator[pa.Table]:
    """The clips of each shard, shuffled by the seed, with nothing of other clips behind them."""
    order, rows = np.random.default_rng(packing.seed).permutation(accepted.num_rows), packing.shard_rows(config.clip)
    for start in range(0, len(order), rows):
        table = accepted.take(pa.array(order[start : start + rows]))
        yield table.cast(_plain(table.schema))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema without dictionaries."""
    kinds = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema([f.with_type(kind) for f, kind in zip(schema, kinds, strict=True)])


def write_shard(clips: pa.Table, out: str, path: str, config: VideoConfig, codec: str) -> Shard:
    """Gather the pixels of `clips` (rows of `judging.candidates`) into one shard, in the order given."""
    size = frame_bytes(config.clip)
    pixels = bytearray(size * clips.num_rows)
    by_file: dict[str, list[int]] = {}
    for position, name in enumerate(clips["data"].to_pylist()):
        by_file.setdefault(name, []).append(position)
    rows, sums = clips["row"].to_pylist(), clips["crc32"].to_pylist()

    def gather(name: str) -> None:
        positions = by_file[name]
        ranges = [(rows[p] * size, (rows[p] + 1) * size) for p in positions]
        for p, data in zip(positions, storage.read_ranges(storage.join(out, name), ranges), strict=True):
            if zlib.crc32(data) != sums[p]:
                raise OSError(f"{name}, clip {rows[p]}: the pixels are not the ones committed; checksums differ")
            pixels[p * size : (p + 1) * size] = data

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(gather, by_file))
    frames = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), clips.num_rows, [None, pa.py_buffer(pixels)])
    if codec == "jpeg":
        frames = pa.array([write_strip(clip) for clip in to_frames(frames, config.clip)], pa.binary())
    schema = clip_schema(config.clip, codec, credited=CREDITS[0] in clips.column_names, scenes=config.scene.looked_for)
    table = clips.select([name for name in schema.names if name != "frames"]).combine_chunks()
    table = table.append_column(schema.field("frames"), frames).select(schema.names)
    data = table_bytes(table.replace_schema_metadata(schema.metadata))
    storage.write_bytes(storage.join(out, path), data)
    prometheus.add("scene_pack_clips_total", clips.num_rows, run=prometheus.run_of(out))
    return Shard(path=path, rows=clips.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
