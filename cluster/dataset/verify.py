"""Verification of a finished dataset."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import pyarrow.parquet as pq
import ray

from cluster.dataset.manifest import Manifest, Shard, read_manifest
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.placement import decode_labels
from cluster.storage.files import read_bytes
from cluster.storage.urls import join_url


def verify_dataset(out: str) -> list[str]:
    """Verify a finished dataset and list its defects, one line each; empty if it is intact.

    Reads every shard and compares size, checksum and number of rows with the manifest. Clip ids must be unique, and
    the counts must add up. Needs a Ray session.

    Raises:
        InputError: no finished dataset at `out`.
    """
    manifest = read_manifest(out)
    check = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(check_shard)
    tasks = [check.remote(out, shard) for shard in manifest.shards]
    defects: list[str] = []
    ids: list[str] = []
    with progress_bar(total=len(tasks), unit="shard", desc="verify") as bar:
        for task in tasks:
            shard_defects, shard_ids = ray.get(task)
            defects += shard_defects
            ids += shard_ids
            bar.update()
    return defects + _count_defects(manifest, ids)


def check_shard(out: str, shard: Shard) -> tuple[list[str], list[str]]:
    """Verify one shard; returns (defects, clip ids)."""
    url = join_url(out, shard.path)
    try:
        data = read_bytes(url)
    except FileNotFoundError:
        return [f"{shard.path} is missing"], []
    if len(data) != shard.bytes:
        return [f"{shard.path} has {len(data)} bytes, expected {shard.bytes} by the manifest"], []
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return [f"{shard.path} does not match its checksum in the manifest"], []
    ids = pq.read_table(io.BytesIO(data), columns=["clip_id"])["clip_id"].to_pylist()
    defects = (
        [f"{shard.path} has {len(ids)} rows, expected {shard.rows} by the manifest"] if len(ids) != shard.rows else []
    )
    return defects, ids


def _count_defects(manifest: Manifest, ids: list[str]) -> list[str]:
    """List contradictions among the clip ids, the manifest's counts and its digest."""
    counts, defects = manifest.counts, []
    duplicates = [i for i, n in Counter(ids).items() if n > 1]
    if duplicates:
        defects.append(f"{len(duplicates)} clip ids occur more than once, e.g. {duplicates[0]}")
    if counts["sources"] != counts["accepted"] + counts["rejected"]:
        defects.append(f"sources {counts['sources']} != accepted {counts['accepted']} + rejected {counts['rejected']}")
    if len(ids) != counts["clips"]:
        defects.append(f"{len(ids)} clips in the shards, expected {counts['clips']} by the manifest")
    if manifest.content_digest() != manifest.digest:
        defects.append("the manifest's digest does not match its content")
    return defects
