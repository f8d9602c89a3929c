"""Export of a dataset in the file layout of the original code: one JPEG strip per clip, and a list of their paths."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import ray

from cluster.dataset.deletion_list import deleted_rows
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.shards import decode_frames
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.placement import decode_labels
from cluster.storage.files import read_bytes, write_bytes
from cluster.storage.urls import join_url
from vgan.video.image_strips import write_strip

LIST = "list.txt"
WRITERS = 16  # threads per task; they mostly wait for an object store


def write_strips(out: str, strips: str) -> int:
    """Write every clip of the dataset at `out` as a JPEG strip below the folder `strips`, the list of paths last.

    A clip becomes clips/ab/<clip_id>.jpg, where ab are the id's first two digits, with frames stacked vertically as in
    the paper. Clips on the deletion list are skipped. The list holds the paths in order of clip id.
    Needs a Ray session.

    Returns:
        Number of clips written.

    Raises:
        InputError: no finished dataset at `out`.
    """
    manifest = read_manifest(out)
    write = ray.remote(num_cpus=1, max_retries=2, label_selector=decode_labels())(write_shard_strips)
    deleted, first, tasks = deleted_rows(out, manifest), 0, []
    for shard in manifest.shards:
        shard_deleted = deleted[(deleted >= first) & (deleted < first + shard.rows)] - first
        tasks.append(write.remote(out, shard.path, manifest, strips, shard_deleted.tolist()))
        first += shard.rows
    names: list[str] = []
    with progress_bar(total=len(tasks), unit="shard", desc="strips") as bar:
        for task in tasks:
            names += ray.get(task)
            bar.update()
    write_bytes(join_url(strips, LIST), "".join(f"{name}\n" for name in sorted(names)).encode())
    return len(names)


def write_shard_strips(out: str, path: str, manifest: Manifest, strips: str, gone: Sequence[int] = ()) -> list[str]:
    """Write one shard's clips as JPEG strips, except the rows `gone`; returns their paths relative to `strips`."""
    table = pq.read_table(io.BytesIO(read_bytes(join_url(out, path))), columns=["clip_id", "frames"])
    table = table.take(sorted(set(range(table.num_rows)) - set(gone))) if gone else table
    names = [f"clips/{name[:2]}/{name}.jpg" for name in table["clip_id"].to_pylist()]
    frames = decode_frames(table["frames"], manifest.clip)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name, clip: write_bytes(join_url(strips, name), write_strip(clip)), names, frames))
    return names
