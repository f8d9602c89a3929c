"""Videos that must go: readers leave their clips out from the next epoch on, the next pack removes them for good.

The list is one file beside the manifest, deleted.json: the names given (source ids, uris or pages), and the rows they
have in the dataset that stood then, so that a reader need not look through the shards.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc

from cluster import storage
from cluster.records import forget, tables
from cluster.shards import MANIFEST, Manifest, read_manifest, small_columns
from cluster.sources import MEANT, meant_by
from cluster.units import Ledger
from vgan.errors import BadInput

DELETED = "deleted.json"
NAMES = ("source_id", "source_uri", "page")  # columns of a shard that a name may stand in
HALF_WINDOW = 256  # clips, of those that `batches` shuffles together


def read_deleted(url: str) -> set[str]:
    """Names on a dataset's deletion list; empty where there is none."""
    place = storage.join(url, DELETED)
    return set(storage.read_json(place)["names"]) if storage.exists(place) else set()


def delete(url: str, names: Iterable[str]) -> int:
    """Put names on the deletion list of a dataset's folder, finished or not. Returns how many clips they have there."""
    given = read_deleted(url) | {name.strip() for name in names if name.strip()}
    rows, digest = np.empty(0, np.int64), ""
    if storage.exists(storage.join(url, MANIFEST)):
        manifest = read_manifest(url)
        rows, digest = rows_of(url, manifest, given), manifest.digest
    _write(url, given, digest, rows)
    return len(rows)


def deleted_rows(url: str, manifest: Manifest) -> np.ndarray:
    """Places in stored order of the clips to leave out, ascending, int64."""
    place = storage.join(url, DELETED)
    if not storage.exists(place):
        return np.empty(0, np.int64)
    found = storage.read_json(place)
    if found["digest"] != manifest.digest:  # packed while the list was written
        return rows_of(url, manifest, set(found["names"]))
    return np.array(found["rows"], np.int64)


def rows_of(url: str, manifest: Manifest, names: set[str]) -> np.ndarray:
    """Places in stored order of the clips that these names mean, by a look at the small columns of every shard."""
    gone = [
        np.any([[value in names for value in table[name].to_pylist()] for name in table.column_names], axis=0)
        for table in small_columns(url, manifest, NAMES, "deletion list")
    ]
    return np.flatnonzero(np.concatenate(gone)) if gone else np.empty(0, np.int64)


def without(order: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """An epoch's order with every deleted clip's place taken by another, which an epoch's length does not depend on.

    A worker's position in the endless sequence thus stays what it is. The stand-in is the kept clip half a window
    further on: near enough that its row group is read anyway, far enough not to come twice in a batch.

    Args:
        order: (clips, 2) of `batches.epoch_order`.
        places: of the same clips in stored order, (clips,).
        rows: deleted clips, in stored order.

    Raises:
        BadInput: none is left.
    """
    gone = np.isin(places, rows)
    kept = np.flatnonzero(~gone)
    if not len(kept):
        raise BadInput("every clip of the dataset is on its deletion list: prepare it again with other sources")
    at = np.flatnonzero(gone)
    instead = kept[(np.searchsorted(kept, at) + HALF_WINDOW) % len(kept)]
    changed = order.copy()
    changed[at] = order[instead]
    return changed


def purge(url: str, manifest: Manifest, names: set[str]) -> None:
    """Remove what work/ still holds of deleted videos once a dataset without them is packed, under any settings."""
    if not names:
        return
    gone: set[str] = set()
    for records in tables(Ledger.read(url), columns=["video", "source"]):
        columns = {name: pc.struct_field(records["source"], name) for name in MEANT}
        gone.update(records["video"].filter(meant_by(names, columns)).to_pylist())
    for folder in ("units", "requeued"):
        place = storage.join(url, "work", folder)
        names_there = storage.list_names(place) if gone else []
        storage.remove_files(place, [name for name in names_there if name.partition(".")[0] in gone])
    forget(url, gone)  # last: their records tell which videos the names mean
    now = names | read_deleted(url)  # others may have been added meanwhile
    _write(url, now, manifest.digest, rows_of(url, manifest, now))


def _write(url: str, names: set[str], digest: str, rows: np.ndarray) -> None:
    storage.write_json(storage.join(url, DELETED), {"names": sorted(names), "digest": digest, "rows": rows.tolist()})
