"""What packing will write: committed clips judged by their scores, everything that gave none, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.records import as_table
from cluster.scenes import refusals, scene_counts
from cluster.shards import REJECTS_SCHEMA, clip_schema, one_array
from cluster.sources import CREDITS, Source, Sources
from vgan.config import GateConfig, SceneConfig, VideoConfig
from vgan.records import Evidence
from vgan.video.fingerprint import near_duplicates, words
from vgan.video.gates import broken, verdict

STAGES = ("fetch", "decode", "shots", "screen", "stabilize", "gates")  # in the order a video meets them
SCORES = [f.name for f in fields(Evidence)]
OF_SOURCES = {name: name for name in ("source_id", "label", "split", *CREDITS)} | {"source_uri": "uri"}
BLOCK = 65536  # clips whose scores are objects at a time


@dataclass(frozen=True)
class Chosen:
    """What packing will write: the clips in order of their ids, everything that gave none, and the totals."""

    accepted: pa.Table  # rows of `candidates`
    rejects: pa.Table  # of REJECTS_SCHEMA
    refused: Counter[str]  # clips by the gate that rejects them
    counts: dict[str, Any]


def choose(parts: Iterable[pa.Table], sources: Sources, config: VideoConfig) -> Chosen:
    """Judge every committed clip by its scores. Records as `pack.pack` takes them.

    Of millions of clips each copy takes gigabytes: they are put in order as they are read out of the records, which
    are let go then, and judged where they are.
    """
    records = pa.concat_tables(parts, promote_options="permissive")
    keys = pa.table({"source_id": _source_ids(records), "segment": records["segment"]})
    order = pc.sort_indices(keys, [("source_id", "ascending"), ("segment", "ascending")])
    clips = candidates(records, sources, config, order.to_numpy())
    records = records.drop_columns(["clips"]).take(order)
    verdicts = judge(clips, config.gates, config.scene)
    rejects = _rejects(records, clips, verdicts)
    passed = _passed(verdicts)
    ids = clips["clip_id"].take(pa.array(passed))
    accepted = clips.take(pa.array(passed[pc.sort_indices(ids).to_numpy()]))
    del clips
    counts = count(records, rejects, accepted)
    if config.scene.sha256:
        counts["scenes"] = scene_counts(accepted, config.scene.categories, config.scene.threshold)
    assert counts["sources"] == len(sources), counts
    return Chosen(accepted, rejects, Counter(v[0] for v in verdicts if v), counts)


def candidates(
    records: pa.Table | list[dict[str, Any]],
    sources: Sequence[Source],
    config: VideoConfig,
    order: np.ndarray | None = None,
) -> pa.Table:
    """Every committed clip: its row without the frames, and where those lie (data, row, crc32).

    What clips have of their source is kept once a source: those columns are dictionaries.

    Args:
        order: (N,) of the records, by which clips come; None: as they are.
    """
    table, listed = as_table(records), Sources.of(sources)
    stored = {name: pc.struct_field(table["clips"], name) for name in _names(table["clips"].type)}
    lengths = pc.fill_null(pc.list_value_length(stored["clip_id"]), 0).to_numpy()
    order = np.arange(len(lengths)) if order is None else order
    num = lengths[order]
    record = np.repeat(order.astype(np.int32), num)
    row = np.arange(len(record)) - np.repeat(np.cumsum(num) - num, num)
    place = pa.array((np.cumsum(lengths) - lengths)[record] + row)  # among all clips as they are
    source = pc.index_in(_source_ids(table), value_set=listed.table["source_id"]).to_numpy()[record]
    places = [("data", pa.string()), ("row", pa.int64()), ("crc32", pa.int64())]
    schema = clip_schema(config.clip, credited=listed.credited, scenes=config.scene.looked_for)
    wanted = [field for field in schema if field.name != "frames"] + [
        pa.field(*each, nullable=False) for each in places
    ]
    columns = {"data": pa.DictionaryArray.from_arrays(record, one_array(table["data"])), "row": pa.array(row)}
    for name in (field.name for field in wanted if field.name not in columns):
        if name in OF_SOURCES:
            columns[name] = pa.DictionaryArray.from_arrays(source, one_array(listed.table[OF_SOURCES[name]]))
        else:
            columns[name] = pc.list_flatten(stored[name]).take(place) if name in stored else pa.nulls(len(record))
    kinds = [columns[f.name].type if pa.types.is_dictionary(columns[f.name].type) else f.type for f in wanted]
    typed = pa.schema([f.with_type(kind) for f, kind in zip(wanted, kinds, strict=True)])
    return pa.table({name: columns[name].cast(typed.field(name).type) for name in typed.names}, typed)


def _names(kind: pa.StructType) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)]


def columns_for(config: VideoConfig) -> list[str]:
    """What packing reads of commit records."""
    of_clips = [
        name for name in clip_schema(config.clip, scenes=config.scene.looked_for).names if name not in OF_SOURCES
    ]
    whole = ["segment", "source.source_id", "source.uri", "source_s", "rejects", "quarantined", "data"]
    return [*whole, *(f"clips.{name}" for name in (*of_clips, "crc32"))]


def judge(clips: pa.Table, config: GateConfig, scene: SceneConfig | None = None) -> list[tuple[str, str] | None]:
    """For each candidate the gate that rejects it as (reason, detail), or None.

    Bounds on scores come first, then the scene, then near-duplicates of other sources' clips, then the cap of clips per
    source; each counts only what passed those before it.
    """
    verdicts: list[tuple[str, str] | None] = [None] * clips.num_rows
    for start in range(0, clips.num_rows, BLOCK):
        scores = clips.select(SCORES).slice(start, BLOCK)
        failing = np.flatnonzero(broken(Evidence(**{name: scores[name].to_numpy() for name in SCORES}), config))
        for i, row in zip(failing.tolist(), scores.take(pa.array(failing)).to_pylist(), strict=True):
            verdicts[start + i] = verdict(Evidence(**row), config)
    for i, refusal in enumerate(refusals(clips, scene) if scene else []):
        if refusal and verdicts[i] is None:
            verdicts[i] = "other_scene", refusal
    sources, passed = one_array(clips["source_id"]), _passed(verdicts)
    owner = sources.indices.to_numpy()
    if "near_duplicate" not in config.off:
        blocks = (clips["fingerprint"].take(pa.array(passed[i : i + BLOCK])) for i in range(0, len(passed), BLOCK))
        prints = np.concatenate([np.zeros((0, 2), np.uint64), *(words(block.to_pylist()) for block in blocks)])
        repeats = near_duplicates(prints, owner[passed], config.duplicate_bits)
        for again in np.flatnonzero(repeats >= 0):
            kept = passed[repeats[again]]
            verdicts[passed[again]] = "near_duplicate", f"of clip {clips['clip_id'][kept]} of {sources[kept]}"
        passed = _passed(verdicts)
    if "source_cap" not in config.off:
        number = _number_within(owner[passed])
        over = number > config.max_per_source
        for i, taken in zip(passed[over], number[over], strict=True):
            verdicts[i] = "source_cap", f"clip {taken}; at most {config.max_per_source}"
    return verdicts


def _passed(verdicts: list[tuple[str, str] | None]) -> np.ndarray:
    """Clips that nothing has rejected yet, int64."""
    return np.flatnonzero(np.fromiter((v is None for v in verdicts), bool, len(verdicts)))


def _number_within(owner: np.ndarray) -> np.ndarray:
    """For each item how many of the same owner there are up to it, itself included."""
    order = np.argsort(owner, kind="stable")
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    lengths = np.diff(first, append=len(owner))
    number = np.empty(len(owner), np.int64)
    number[order] = np.arange(len(owner)) - np.repeat(first, lengths) + 1
    return number


def count(
    records: pa.Table | list[dict[str, Any]], rejects: pa.Table | list[dict[str, Any]], accepted: pa.Table
) -> dict[str, Any]:
    """Totals. A source without clips is rejected for the most frequent reason among its rejects.

    Raises:
        AssertionError: a source is neither accepted nor rejected with a reason.
    """
    table = as_table(records)
    refused = rejects if isinstance(rejects, pa.Table) else pa.Table.from_pylist(rejects, REJECTS_SCHEMA)
    everything = pc.unique(_source_ids(table))
    good = pc.unique(accepted["source_id"]).cast(pa.string())
    bad = everything.filter(pc.invert(pc.is_in(everything, value_set=good)))
    rejected = Counter(_main_reasons(refused.filter(pc.is_in(refused["source_id"], value_set=bad))))
    funnel = {
        (row["stage"], row["reason"]): row["count_all"]
        for row in refused.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    }
    windows = pc.and_(refused["start_s"].is_valid(), pc.not_equal(refused["stage"], "shots"))
    counts = {
        "sources": len(everything),
        "accepted": len(good),
        "rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "quarantined": pc.count_distinct(_source_ids(table.filter(table["quarantined"]))).as_py(),
        "source_hours": round(sum(table["source_s"].to_pylist()) / 3600, 6),
        "windows": accepted.num_rows + (pc.sum(windows).as_py() or 0),
        "clips": accepted.num_rows,
        "segments_rejected": refused.num_rows,
        "segments_rejected_by_reason": {
            stage: {reason: n for (at, reason), n in sorted(funnel.items()) if at == stage}
            for stage in sorted({at for at, _ in funnel}, key=STAGES.index)
        },
    }
    assert len(everything) == len(good) + rejected.total(), counts
    return counts


def _main_reasons(rejects: pa.Table) -> list[str]:
    """Of each source the most frequent reason, the first of several."""
    numbered = rejects.append_column("number", pa.array(np.arange(rejects.num_rows)))
    reasons = numbered.group_by(["source_id", "reason"]).aggregate([("number", "count"), ("number", "min")])
    ranked = reasons.sort_by([("source_id", "ascending"), ("number_count", "descending"), ("number_min", "ascending")])
    sources = one_array(ranked["source_id"]).dictionary_encode().indices.to_numpy()
    return ranked["reason"].take(pa.array(np.flatnonzero(np.diff(sources, prepend=-1)))).to_pylist()


def _rejects(records: pa.Table, clips: pa.Table, verdicts: list[tuple[str, str] | None]) -> pa.Table:
    """Everything that gave no clip, in order of source and start, with what refused it (REJECTS_SCHEMA)."""
    lengths = pc.fill_null(pc.list_value_length(records["rejects"]), 0).to_numpy()
    record = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    told = pc.list_flatten(records["rejects"])
    sources = {"source_id": _source_ids(records), "source_uri": pc.struct_field(records["source"], "uri")}
    by_stages = {name: column.take(record) for name, column in sources.items()}
    by_stages |= {name: pc.struct_field(told, name) for name in ("start_s", "stage", "reason", "detail")}
    found = [(i, *v) for i, v in enumerate(verdicts) if v]
    refused = clips.select(["source_id", "source_uri", "start_s"]).take(pa.array([i for i, *_ in found], pa.int64()))
    by_gates = {name: refused[name].cast(REJECTS_SCHEMA.field(name).type) for name in refused.column_names}
    by_gates |= {"stage": ["gates"] * len(found), "reason": [r for _, r, _ in found], "detail": [d for *_, d in found]}
    rows = pa.concat_tables([pa.table(by_stages, REJECTS_SCHEMA), pa.table(by_gates, REJECTS_SCHEMA)])
    keys = [("source_id", "ascending", "at_start"), ("start_s", "ascending", "at_start")]
    return rows.take(pc.sort_indices(rows, keys))


def _source_ids(records: pa.Table) -> pa.ChunkedArray:
    return pc.struct_field(records["source"], "source_id")
