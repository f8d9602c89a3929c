"""Selection of clips for packing: filters on the stored scores, the table of rejects, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.manifest import REJECTS_SCHEMA
from cluster.dataset.shards import clip_schema, combine_chunks
from cluster.prepare.commit_records import to_table
from cluster.prepare.scene_scores import count_scenes, scene_mismatches
from cluster.sources.manifest import ATTRIBUTION_COLUMNS, Source, Sources
from vgan.records import ClipScores
from vgan.scenes.config import SceneConfig
from vgan.video.config import FilterConfig, VideoConfig
from vgan.video.fingerprint import fingerprint_words, motion_words, near_duplicates
from vgan.video.quality_filters import first_violation, violation_mask

STAGES = ("fetch", "decode", "shots", "screen", "stabilize", "gates")  # in the order of processing
SCORES = [f.name for f in fields(ClipScores)]
OF_SOURCES = {name: name for name in ("source_id", "label", "split", *ATTRIBUTION_COLUMNS)} | {"source_uri": "uri"}
BLOCK = 65536  # clips whose scores are held as Python or NumPy objects at a time


@dataclass(frozen=True)
class Selection:
    """Result of the selection: accepted clips ordered by id, rejects, and totals."""

    accepted: pa.Table  # rows of `candidate_table`
    rejects: pa.Table  # of REJECTS_SCHEMA
    num_by_reason: Counter[str]  # number of clips by the filter that rejects them
    counts: dict[str, Any]


def select_clips(parts: Iterable[pa.Table], sources: Sources, config: VideoConfig) -> Selection:
    """Select the clips to pack by their scores, and count accepted and rejected ones.

    A copy of millions of clips takes gigabytes. The clips are therefore sorted while they are extracted from the
    records, the records' clip columns are freed, and the filters are applied without another copy.

    Args:
        parts: parts of the sources' commit records, in any order, as for `packing.pack_shards`.
        sources: the videos.
        config: video settings with filters and scenes.

    Raises:
        AssertionError: the totals do not add up to the number of sources.
    """
    records = pa.concat_tables(parts, promote_options="permissive")
    keys = pa.table({"source_id": _source_ids(records), "segment": records["segment"]})
    order = pc.sort_indices(keys, [("source_id", "ascending"), ("segment", "ascending")])
    clips = candidate_table(records, sources, config, order.to_numpy())
    records = records.drop_columns(["clips"]).take(order)
    rejections = apply_filters(clips, config.filters, config.scene)
    rejects = _rejects(records, clips, rejections)
    passing = _passed(rejections)
    ids = clips["clip_id"].take(pa.array(passing))
    accepted = clips.take(pa.array(passing[pc.sort_indices(ids).to_numpy()]))
    del clips
    counts = summarize_counts(records, rejects, accepted)
    if config.scene.sha256:
        counts["scenes"] = count_scenes(accepted, config.scene.categories, config.scene.min_probability)
    assert counts["sources"] == len(sources), counts
    return Selection(accepted, rejects, Counter(v[0] for v in rejections if v), counts)


def candidate_table(
    records: pa.Table | list[dict[str, Any]],
    sources: Sequence[Source],
    config: VideoConfig,
    order: np.ndarray | None = None,
) -> pa.Table:
    """Build a table of all committed clips: shard columns without `frames`, and their pixels' location and checksum.

    The location is (data, row), the checksum crc32. Columns with values of the source are dictionary-encoded, so that
    each value is stored once per source.

    Args:
        records: commit records.
        sources: the videos; label, split, uri and attribution are taken from here.
        config: video settings.
        order: (N,) permutation of the records that orders their clips; None keeps their order.
    """
    table, listed = to_table(records), Sources.of(sources)
    stored = {name: pc.struct_field(table["clips"], name) for name in _names(table["clips"].type)}
    lengths = pc.fill_null(pc.list_value_length(stored["clip_id"]), 0).to_numpy()
    order = np.arange(len(lengths)) if order is None else order
    counts = lengths[order]
    record = np.repeat(order.astype(np.int32), counts)
    row = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
    clip_index = pa.array((np.cumsum(lengths) - lengths)[record] + row)  # index among all clips in the records' order
    source = pc.index_in(_source_ids(table), value_set=listed.table["source_id"]).to_numpy()[record]
    location_fields = [("data", pa.string()), ("row", pa.int64()), ("crc32", pa.int64())]
    schema = clip_schema(config.clip, credited=listed.has_attribution, scenes=config.scene.scored_categories)
    schema_fields = [field for field in schema if field.name != "frames"] + [
        pa.field(*each, nullable=False) for each in location_fields
    ]
    columns = {"data": pa.DictionaryArray.from_arrays(record, combine_chunks(table["data"])), "row": pa.array(row)}
    for name in (field.name for field in schema_fields if field.name not in columns):
        if name in OF_SOURCES:
            columns[name] = pa.DictionaryArray.from_arrays(source, combine_chunks(listed.table[OF_SOURCES[name]]))
        else:
            columns[name] = pc.list_flatten(stored[name]).take(clip_index) if name in stored else pa.nulls(len(record))
    types = [columns[f.name].type if pa.types.is_dictionary(columns[f.name].type) else f.type for f in schema_fields]
    typed = pa.schema([f.with_type(type_) for f, type_ in zip(schema_fields, types, strict=True)])
    return pa.table({name: columns[name].cast(typed.field(name).type) for name in typed.names}, typed)


def _names(struct: pa.StructType) -> list[str]:
    """List the field names of a struct type."""
    return [struct.field(i).name for i in range(struct.num_fields)]


def required_columns(config: VideoConfig) -> list[str]:
    """List the columns of commit records that packing reads, dotted for fields of a struct."""
    clip_columns = [
        name for name in clip_schema(config.clip, scenes=config.scene.scored_categories).names if name not in OF_SOURCES
    ]
    record_columns = ["segment", "source.source_id", "source.uri", "source_s", "rejects", "quarantined", "data"]
    return [*record_columns, *(f"clips.{name}" for name in (*clip_columns, "crc32"))]


def apply_filters(
    clips: pa.Table, config: FilterConfig, scene: SceneConfig | None = None
) -> list[tuple[str, str] | None]:
    """Return for each candidate (reason, detail) of the filter that rejects it, or None.

    Filters are applied in this order, each to the clips that passed those before it: bounds on scores, scene category,
    near-duplicates of other sources' clips, cap of clips per source.
    """
    rejections: list[tuple[str, str] | None] = [None] * clips.num_rows
    for start in range(0, clips.num_rows, BLOCK):
        scores = clips.select(SCORES).slice(start, BLOCK)
        failing = np.flatnonzero(
            violation_mask(ClipScores(**{name: scores[name].to_numpy() for name in SCORES}), config)
        )
        for i, row in zip(failing.tolist(), scores.take(pa.array(failing)).to_pylist(), strict=True):
            rejections[start + i] = first_violation(ClipScores(**row), config)
    for i, refusal in enumerate(scene_mismatches(clips, scene) if scene else []):
        if refusal and rejections[i] is None:
            rejections[i] = "other_scene", refusal
    sources, passing = combine_chunks(clips["source_id"]), _passed(rejections)
    owner = sources.indices.to_numpy()
    if "near_duplicate" not in config.disabled:
        repeats = near_duplicates(
            _words(clips["fingerprint"], passing, fingerprint_words),
            owner[passing],
            config.max_duplicate_distance_bits,
            _words(clips["motion_signs"], passing, motion_words),
            config.min_duplicate_similarity,
        )
        for duplicate in np.flatnonzero(repeats >= 0):
            original = passing[repeats[duplicate]]
            rejections[passing[duplicate]] = (
                "near_duplicate",
                f"of clip {clips['clip_id'][original]} of {sources[original]}",
            )
        passing = _passed(rejections)
    if "source_cap" not in config.disabled:
        number = _number_within(owner[passing])
        exceeding = number > config.max_clips_per_video
        for i, ordinal in zip(passing[exceeding], number[exceeding], strict=True):
            rejections[i] = "source_cap", f"clip {ordinal}; at most {config.max_clips_per_video}"
    return rejections


def _words(column: pa.ChunkedArray, rows: np.ndarray, convert: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """Convert these rows of a column of hex strings to words, BLOCK rows at a time."""
    starts = range(0, max(1, len(rows)), BLOCK)
    return np.concatenate([convert(column.take(pa.array(rows[i : i + BLOCK])).to_pylist()) for i in starts])


def _passed(rejections: list[tuple[str, str] | None]) -> np.ndarray:
    """Return the indices of clips not rejected so far, int64."""
    return np.flatnonzero(np.fromiter((v is None for v in rejections), bool, len(rejections)))


def _number_within(owner: np.ndarray) -> np.ndarray:
    """Return the position of each item among those of its owner, counted from 1; int64 (N,)."""
    order = np.argsort(owner, kind="stable")
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    lengths = np.diff(first, append=len(owner))
    number = np.empty(len(owner), np.int64)
    number[order] = np.arange(len(owner)) - np.repeat(first, lengths) + 1
    return number


def summarize_counts(
    records: pa.Table | list[dict[str, Any]], rejects: pa.Table | list[dict[str, Any]], accepted: pa.Table
) -> dict[str, Any]:
    """Count sources, clips and rejects by stage and reason.

    A source without clips counts as rejected for the most frequent reason among its rejects.

    Raises:
        AssertionError: a source is neither accepted nor rejected with a reason.
    """
    table = to_table(records)
    reject_table = rejects if isinstance(rejects, pa.Table) else pa.Table.from_pylist(rejects, REJECTS_SCHEMA)
    all_sources = pc.unique(_source_ids(table))
    accepted_sources = pc.unique(accepted["source_id"]).cast(pa.string())
    rejected_sources = all_sources.filter(pc.invert(pc.is_in(all_sources, value_set=accepted_sources)))
    of_rejected_sources = pc.is_in(reject_table["source_id"], value_set=rejected_sources)
    rejected = Counter(_main_reasons(reject_table.filter(of_rejected_sources)))
    reject_groups = reject_table.group_by(["stage", "reason"]).aggregate([([], "count_all")])
    funnel = {(row["stage"], row["reason"]): row["count_all"] for row in reject_groups.to_pylist()}
    windows = pc.and_(reject_table["start_s"].is_valid(), pc.not_equal(reject_table["stage"], "shots"))
    counts = {
        "sources": len(all_sources),
        "accepted": len(accepted_sources),
        "rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "quarantined": pc.count_distinct(_source_ids(table.filter(table["quarantined"]))).as_py(),
        "source_hours": round(sum(table["source_s"].to_pylist()) / 3600, 6),
        "windows": accepted.num_rows + (pc.sum(windows).as_py() or 0),
        "clips": accepted.num_rows,
        "segments_rejected": reject_table.num_rows,
        "segments_rejected_by_reason": {
            stage: {reason: n for (at_stage, reason), n in sorted(funnel.items()) if at_stage == stage}
            for stage in sorted({at_stage for at_stage, _ in funnel}, key=STAGES.index)
        },
    }
    assert len(all_sources) == len(accepted_sources) + rejected.total(), counts
    return counts


def _main_reasons(rejects: pa.Table) -> list[str]:
    """Return the most frequent reason of each source; ties go to the one that occurs first."""
    numbered = rejects.append_column("number", pa.array(np.arange(rejects.num_rows)))
    reasons = numbered.group_by(["source_id", "reason"]).aggregate([("number", "count"), ("number", "min")])
    ranked = reasons.sort_by([("source_id", "ascending"), ("number_count", "descending"), ("number_min", "ascending")])
    sources = combine_chunks(ranked["source_id"]).dictionary_encode().indices.to_numpy()
    return ranked["reason"].take(pa.array(np.flatnonzero(np.diff(sources, prepend=-1)))).to_pylist()


def _rejects(records: pa.Table, clips: pa.Table, rejections: list[tuple[str, str] | None]) -> pa.Table:
    """Build the table of all rejects (REJECTS_SCHEMA), ordered by source and start time."""
    lengths = pc.fill_null(pc.list_value_length(records["rejects"]), 0).to_numpy()
    record = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    stage_rejects = pc.list_flatten(records["rejects"])
    sources = {"source_id": _source_ids(records), "source_uri": pc.struct_field(records["source"], "uri")}
    stage_columns = {name: column.take(record) for name, column in sources.items()}
    stage_columns |= {name: pc.struct_field(stage_rejects, name) for name in ("start_s", "stage", "reason", "detail")}
    gate_rejects = [(i, *v) for i, v in enumerate(rejections) if v]
    refused = clips.select(["source_id", "source_uri", "start_s"]).take(
        pa.array([i for i, *_ in gate_rejects], pa.int64())
    )
    gate_columns = {name: refused[name].cast(REJECTS_SCHEMA.field(name).type) for name in refused.column_names}
    gate_columns |= {
        "stage": ["gates"] * len(gate_rejects),
        "reason": [r for _, r, _ in gate_rejects],
        "detail": [d for *_, d in gate_rejects],
    }
    rows = pa.concat_tables([pa.table(stage_columns, REJECTS_SCHEMA), pa.table(gate_columns, REJECTS_SCHEMA)])
    keys = [("source_id", "ascending", "at_start"), ("start_s", "ascending", "at_start")]
    return rows.take(pc.sort_indices(rows, keys))


def _source_ids(records: pa.Table) -> pa.ChunkedArray:
    """Return the source_id of each record."""
    return pc.struct_field(records["source"], "source_id")
