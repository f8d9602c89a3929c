"""Phase 2 of prepare: committed clips, judged by their scores, shuffled by a seed, into shards with fixed names."""

from __future__ import annotations

import datetime
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster import prometheus, storage
from cluster.placement import decode_labels
from cluster.progress import progress_bar
from cluster.runs import git_commit
from cluster.scenes import refusals, scene_counts
from cluster.shards import (
    MANIFEST,
    READERS,
    REJECTS,
    REJECTS_SCHEMA,
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
from cluster.sources import CREDITS, Source
from vgan.config import ClipSpec, GateConfig, SceneConfig, VideoConfig
from vgan.errors import BadInput
from vgan.records import Evidence
from vgan.video.fingerprint import near_duplicates
from vgan.video.gates import verdict
from vgan.video.strips import write_strip

STAGES = ("fetch", "decode", "shots", "screen", "stabilize", "gates")  # in the order a video meets them
SCORES = [f.name for f in fields(Evidence)]


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
    records: list[dict[str, Any]],
    sources: Sequence[Source],
    out: str,
    config: VideoConfig,
    packing: Packing,
    inputs: str,
) -> Manifest:
    """Write the shards, the rejects and the manifest's content.

    Args:
        records: commit records of every source, in order of source_id, segments ascending.
        sources: the videos; label, split, licence, author, page and tags are taken from here.
        out: url of the dataset's folder.
        config: what the clips were made with, and the gates.
        packing: order, size and codec of the shards.
        inputs: digest of what went in, kept so that the same call again finds its work done.

    Raises:
        BadInput: there is no clip at all.
    """
    clips = candidates(records, sources, config)
    verdicts = judge(clips, config.gates, config.scene)
    rejects = _reject_rows(records, clips, verdicts)
    accepted = clips.filter(pa.array([v is None for v in verdicts], pa.bool_()))
    counts = count(records, rejects, accepted)
    if config.scene.sha256:
        counts["scenes"] = scene_counts(accepted, config.scene.categories, config.scene.threshold)
    assert counts["sources"] == len(sources), counts
    if not accepted.num_rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
        raise BadInput(f"none of the {counts['sources']} videos gave a clip ({reasons}): nothing to write to {out!r}")
    _check_pixels_are_there(accepted, out)
    for reason, num in Counter(v[0] for v in verdicts if v).items():
        labels = {"run": prometheus.run_of(out), "stage": "gates", "reason": reason}
        prometheus.add("scene_prepare_rejects_total", num, **labels)
    order = np.random.default_rng(packing.seed).permutation(accepted.num_rows)
    storage.remove(storage.join(out, MANIFEST))  # from here on the old dataset is gone
    storage.remove(storage.join(out, "shards"))
    write = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(write_shard)
    accepted = accepted.sort_by("clip_id")
    tasks = []
    shard_rows = packing.shard_rows(config.clip)
    for number, start in enumerate(range(0, len(order), shard_rows)):
        chosen = accepted.take(pa.array(order[start : start + shard_rows]))
        tasks.append(write.remote(chosen, out, f"shards/shard-{number:06d}.parquet", config, packing.codec))
    shards = []
    with progress_bar(total=len(tasks), unit="shard", desc="pack") as bar:
        for task in tasks:
            shards.append(ray.get(task))
            bar.update()
    table = pa.Table.from_pylist(rejects, REJECTS_SCHEMA)
    storage.write_bytes(storage.join(out, REJECTS), table_bytes(table))
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
    there = {url.rpartition("/")[2] for url in storage.list_files(storage.join(out, "work", "units"))}
    gone = sorted({name.rpartition("/")[2] for name in clips["data"].unique().to_pylist()} - there)
    if gone:
        raise BadInput(
            f"{len(gone)} files of pixels are gone from {out!r}/work/units, {gone[0]} first: remove {out!r} and "
            "prepare it again"
        )


def candidates(records: list[dict[str, Any]], sources: Sequence[Source], config: VideoConfig) -> pa.Table:
    """Every committed clip: its row without the frames, and where those lie (data, row, crc32)."""
    credited = any(any(s.credits.values()) for s in sources)
    columns = [
        field for field in clip_schema(config.clip, credited=credited, scenes=_scenes(config)) if field.name != "frames"
    ]
    places = [("data", pa.string()), ("row", pa.int64()), ("crc32", pa.int64())]
    schema = pa.schema([*columns, *(pa.field(name, kind, nullable=False) for name, kind in places)])
    by_id = {s.source_id: s for s in sources}
    tables = [schema.empty_table()]
    for record in records:
        if record["data"] is None:
            continue
        columns_of = record["clips"]
        num, source = len(columns_of["clip_id"]), by_id[record["source"]["source_id"]]
        told: dict[str, list[Any]] = {"label": [source.label] * num, "split": [source.split] * num}
        told |= {name: [value] * num for name, value in source.credits.items() if credited}
        places_of = {"data": [record["data"]] * num, "row": list(range(num))}
        tables.append(pa.Table.from_pydict(columns_of | told | places_of, schema))
    return pa.concat_tables(tables)


def _scenes(config: VideoConfig) -> list[str]:
    """The categories that clips have been looked at for."""
    return config.scene.categories if config.scene.sha256 else []


def judge(clips: pa.Table, config: GateConfig, scene: SceneConfig | None = None) -> list[tuple[str, str] | None]:
    """For each candidate the gate that rejects it as (reason, detail), or None.

    Bounds on scores come first, then the scene, then near-duplicates of other sources' clips, then the cap of clips per
    source; each counts only what passed those before it.
    """
    rows = clips.select(SCORES).to_pylist()
    verdicts = [verdict(Evidence(**row), config) for row in rows]
    for i, refusal in enumerate(refusals(clips, scene) if scene else []):
        if refusal and verdicts[i] is None:
            verdicts[i] = "other_scene", refusal
    sources = clips["source_id"].to_pylist()
    if "near_duplicate" not in config.off:
        passed = [i for i, v in enumerate(verdicts) if v is None]
        names = clips["clip_id"].to_pylist()
        prints = [rows[i]["fingerprint"] for i in passed]
        repeats = near_duplicates(prints, [sources[i] for i in passed], config.duplicate_bits)
        for i, kept in zip(passed, repeats.tolist(), strict=True):
            if kept >= 0:
                verdicts[i] = "near_duplicate", f"of clip {names[passed[kept]]} of {sources[passed[kept]]}"
    if "source_cap" not in config.off:
        taken: Counter[str] = Counter()
        for i, source in enumerate(sources):
            if verdicts[i] is None:
                taken[source] += 1
                if taken[source] > config.max_per_source:
                    verdicts[i] = "source_cap", f"clip {taken[source]}; at most {config.max_per_source}"
    return verdicts


def write_shard(clips: pa.Table, out: str, path: str, config: VideoConfig, codec: str) -> Shard:
    """Gather the pixels of `clips` (rows of `candidates`) into one shard, in the order given."""
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
    schema = clip_schema(config.clip, codec, credited=CREDITS[0] in clips.column_names, scenes=_scenes(config))
    table = clips.select([name for name in schema.names if name != "frames"]).combine_chunks()
    table = table.append_column(schema.field("frames"), frames).select(schema.names)
    data = table_bytes(table.replace_schema_metadata(schema.metadata))
    storage.write_bytes(storage.join(out, path), data)
    prometheus.add("scene_pack_clips_total", clips.num_rows, run=prometheus.run_of(out))
    return Shard(path=path, rows=clips.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def count(records: list[dict[str, Any]], rejects: list[dict[str, Any]], accepted: pa.Table) -> dict[str, Any]:
    """Totals. A source without clips is rejected for the most frequent reason among its rejects.

    Raises:
        AssertionError: a source is neither accepted nor rejected with a reason.
    """
    everything = {r["source"]["source_id"] for r in records}
    good = set(accepted["source_id"].to_pylist())
    reasons: dict[str, Counter[str]] = {}
    for row in rejects:
        reasons.setdefault(row["source_id"], Counter())[row["reason"]] += 1
    rejected = Counter(reasons[s].most_common(1)[0][0] for s in everything - good if s in reasons)
    funnel = Counter((r["stage"], r["reason"]) for r in rejects)
    counts = {
        "sources": len(everything),
        "accepted": len(good),
        "rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "quarantined": len({r["source"]["source_id"] for r in records if r["quarantined"]}),
        "source_hours": round(sum(r["source_s"] for r in records) / 3600, 6),
        "windows": accepted.num_rows + sum(r["start_s"] is not None and r["stage"] != "shots" for r in rejects),
        "clips": accepted.num_rows,
        "segments_rejected": len(rejects),
        "segments_rejected_by_reason": {
            stage: {reason: n for (at, reason), n in sorted(funnel.items()) if at == stage}
            for stage in sorted({at for at, _ in funnel}, key=STAGES.index)
        },
    }
    assert len(everything) == len(good) + rejected.total(), counts
    return counts


def _reject_rows(
    records: list[dict[str, Any]], clips: pa.Table, verdicts: list[tuple[str, str] | None]
) -> list[dict[str, Any]]:
    """Everything that gave no clip, in order of source and start, with what refused it."""
    rows = [
        {"source_id": r["source"]["source_id"], "source_uri": r["source"]["uri"], **reject}
        for r in records
        for reject in r["rejects"]
    ]
    columns = clips.select(["source_id", "source_uri", "start_s"]).to_pylist()
    for row, found in zip(columns, verdicts, strict=True):
        if found:
            rows.append({**row, "stage": "gates", "reason": found[0], "detail": found[1]})
    return sorted(rows, key=lambda r: (r["source_id"], r["start_s"] is not None, r["start_s"] or 0.0))
