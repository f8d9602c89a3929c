"""Removal of deleted videos from a dataset's work folder."""

from __future__ import annotations

import pyarrow.compute as pc

from cluster.dataset.deletion_list import _write, matching_rows, read_deleted
from cluster.dataset.manifest import Manifest
from cluster.prepare.commit_records import iter_record_tables, remove_records
from cluster.prepare.ledger import Ledger
from cluster.sources.manifest import NAME_COLUMNS, matches_any_name
from cluster.storage.files import list_names, remove_files
from cluster.storage.urls import join_url


def purge(url: str, manifest: Manifest, names: set[str]) -> None:
    """Remove pixels, records and markers of deleted videos from work/, for all settings, after packing without them."""
    if not names:
        return
    videos: set[str] = set()
    for records in iter_record_tables(Ledger.read(url), columns=["video", "source"]):
        columns = {name: pc.struct_field(records["source"], name) for name in NAME_COLUMNS}
        videos.update(records["video"].filter(matches_any_name(names, columns)).to_pylist())
    for folder in ("units", "requeued"):
        folder_url = join_url(url, "work", folder)
        file_names = list_names(folder_url) if videos else []
        remove_files(folder_url, [name for name in file_names if name.partition(".")[0] in videos])
    remove_records(url, videos)  # last: the records map names to videos, so a rerun after a crash needs them
    listed = names | read_deleted(url)  # names may have been added meanwhile
    _write(url, listed, manifest.digest, matching_rows(url, manifest, listed))
