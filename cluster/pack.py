"""Phase 2 of prepare: committed clips, shuffled by a seed, into shards with names that follow from their number."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster import storage
from cluster.progress import progress_bar
from cluster.runs import git_commit
from cluster.shards import MANIFEST, REJECTS_SCHEMA, Manifest, Shard, clip_schema, config_digest, table_bytes
from vgan.config import VideoConfig
from vgan.errors import BadInput


def pack(
    records: list[dict[str, Any]], out: str, config: VideoConfig, *, seed: int, shard_rows: int, inputs: str
) -> Manifest:
    """Write the shards, the rejects and the manifest's content.

    Args:
        records: commit records of every source.
        out: url of the dataset's folder.
        config: what the clips were made with.
        seed: of the shuffle.
        shard_rows: clips in a shard.
        inputs: digest of what went in, kept so that the same call again finds its work done.

    Raises:
        BadInput: there is no clip at all.
    """
    counts = count(records)
    refs = sorted((i, r["data"], row) for r in records for row, i in enumerate(r["clip_ids"]))
    if not refs:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
        raise BadInput(f"none of the {counts['sources']} videos gave a clip ({reasons}): nothing to write to {out!r}")
    order = np.random.default_rng(seed).permutation(len(refs))
    storage.remove(storage.join(out, MANIFEST))  # from here on the old dataset is gone
    storage.remove(storage.join(out, "shards"))
    write = ray.remote(num_cpus=1, max_retries=2)(write_shard)
    tasks = []
    for number, start in enumerate(range(0, len(refs), shard_rows)):
        chosen = [refs[i][1:] for i in order[start : start + shard_rows]]
        tasks.append(write.remote(chosen, out, f"shards/shard-{number:06d}.parquet", config))
    shards = []
    with progress_bar(total=len(tasks), unit="shard", desc="pack") as bar:
        for task in tasks:
            shards.append(ray.get(task))
            bar.update()
    _write_rejects(records, out)
    manifest = Manifest(
        clip=config.clip,
        config={"video": asdict(config), "digest": config_digest(config), "seed": seed, "inputs": inputs},
        counts=counts,
        shards=shards,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
    )
    return replace(manifest, digest=manifest.content_digest())


def write_shard(refs: list[tuple[str, int]], out: str, path: str, config: VideoConfig) -> Shard:
    """Gather clips, each (unit file, row), into one shard, in the order given."""
    tables = {name: pq.read_table(io.BytesIO(storage.read_bytes(storage.join(out, name)))) for name, _ in refs}
    rows = pa.concat_tables([tables[name].slice(row, 1) for name, row in refs]).combine_chunks()
    schema = clip_schema(config.clip)
    data = table_bytes(rows.cast(schema).replace_schema_metadata(schema.metadata))
    storage.write_bytes(storage.join(out, path), data)
    return Shard(path=path, rows=len(refs), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def count(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals over commit records. A source without clips is rejected for its most frequent reason.

    Raises:
        AssertionError: a source is neither accepted nor rejected with a reason.
    """
    accepted = [r for r in records if r["clip_ids"]]
    rejected = Counter(
        Counter(j["reason"] for j in r["rejects"]).most_common(1)[0][0]
        for r in records
        if not r["clip_ids"] and r["rejects"]
    )
    counts = {
        "sources": len(records),
        "accepted": len(accepted),
        "rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "clips": sum(len(r["clip_ids"]) for r in records),
        "segments_rejected": sum(len(r["rejects"]) for r in records),
        "segments_rejected_by_reason": dict(
            sorted(Counter(j["reason"] for r in records for j in r["rejects"]).items())
        ),
    }
    assert len(records) == len(accepted) + rejected.total(), counts
    return counts


def _write_rejects(records: list[dict[str, Any]], out: str) -> None:
    rows = [
        {"source_id": r["source"]["source_id"], "source_uri": r["source"]["uri"], **reject}
        for r in records
        for reject in r["rejects"]
    ]
    storage.write_bytes(storage.join(out, "rejects.parquet"), table_bytes(pa.Table.from_pylist(rows, REJECTS_SCHEMA)))
