"""Deletion list of a dataset: readers skip its clips from the next epoch on, the next packing removes them for good.

The list is one file beside the manifest, deleted.json: names of videos (source ids, uris or pages), and the rows of
their clips in the dataset of that time, identified by its digest, so that readers need not scan the shards.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest
from cluster.dataset.shards import iter_columns
from cluster.storage.files import exists, read_json, write_json
from cluster.storage.urls import join_url
from vgan.errors import InputError

DELETED = "deleted.json"
NAMES = ("source_id", "source_uri", "page")  # shard columns that names are matched against
HALF_WINDOW = 256  # clips: half of a shuffling window of `batches`


def read_deleted(url: str) -> set[str]:
    """Read the names on a dataset's deletion list; empty if there is no list."""
    list_url = join_url(url, DELETED)
    return set(read_json(list_url)["names"]) if exists(list_url) else set()


def add_to_deletion_list(url: str, names: Iterable[str]) -> int:
    """Add names to the deletion list of a dataset's folder, finished or not.

    Returns:
        Number of clips of the finished dataset that all names on the list match; 0 if it is not finished.
    """
    listed = read_deleted(url) | {name.strip() for name in names if name.strip()}
    rows, digest = np.empty(0, np.int64), ""
    if exists(join_url(url, MANIFEST)):
        manifest = read_manifest(url)
        rows, digest = matching_rows(url, manifest, listed), manifest.digest
    _write(url, listed, digest, rows)
    return len(rows)


def deleted_rows(url: str, manifest: Manifest) -> np.ndarray:
    """Return the positions in stored order of the clips to skip, ascending, int64."""
    list_url = join_url(url, DELETED)
    if not exists(list_url):
        return np.empty(0, np.int64)
    deletion_list = read_json(list_url)
    if deletion_list["digest"] != manifest.digest:  # the dataset was packed after the list was written
        return matching_rows(url, manifest, set(deletion_list["names"]))
    return np.array(deletion_list["rows"], np.int64)


def matching_rows(url: str, manifest: Manifest, names: set[str]) -> np.ndarray:
    """Find the clips that these names match: positions in stored order, int64. Reads small columns of every shard."""
    matches = [
        np.any([[value in names for value in table[name].to_pylist()] for name in table.column_names], axis=0)
        for table in iter_columns(url, manifest, NAMES, "deletion list")
    ]
    return np.flatnonzero(np.concatenate(matches)) if matches else np.empty(0, np.int64)


def replace_deleted(order: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Replace deleted clips in an epoch's order by other clips; the epoch keeps its length.

    Every worker's position in the endless sequence therefore stays valid. The replacement is the remaining clip half a
    window later: near enough that its row group is read anyway, far enough not to occur twice in a batch.

    Args:
        order: (clips, 2) of `batches.epoch_order`.
        places: positions of the same clips in stored order, (clips,).
        rows: positions of deleted clips in stored order.

    Raises:
        InputError: every clip is deleted.
    """
    is_deleted = np.isin(places, rows)
    remaining = np.flatnonzero(~is_deleted)
    if not len(remaining):
        raise InputError("every clip of the dataset is on its deletion list: prepare it again with other sources")
    deleted = np.flatnonzero(is_deleted)
    replacements = remaining[(np.searchsorted(remaining, deleted) + HALF_WINDOW) % len(remaining)]
    result = order.copy()
    result[deleted] = order[replacements]
    return result


def _write(url: str, names: set[str], digest: str, rows: np.ndarray) -> None:
    write_json(join_url(url, DELETED), {"names": sorted(names), "digest": digest, "rows": rows.tolist()})
