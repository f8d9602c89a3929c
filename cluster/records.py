"""Commit records by the million: most are moved into Parquet files, and all are read as columns.

A record is put as a JSON file of its own (`cluster/units.py`), which says once and for all that its unit is done. When
many thousands lie there, blocks of them are written to work/records/, a Parquet file each, and then removed: killed in
between, a record is in both places and counts once.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from cluster import storage
from cluster.sources import SCHEMA
from cluster.units import NAMED, READERS, Ledger, commit_names, named_units, unmoved
from vgan.records import Evidence

MOST_LOOSE = 16384  # records with files of their own that are left so
BLOCK = 8192  # records in a Parquet file, and in memory while they are moved
TEXT, NUMBER, WHOLE = pa.string(), pa.float64(), pa.int64()
KINDS = {"float": NUMBER, "int": WHOLE, "bool": pa.bool_(), "str": TEXT}
REJECT = {"start_s": NUMBER, "stage": TEXT, "reason": TEXT, "detail": TEXT}
PROBE = {"duration_s": NUMBER, "width": WHOLE, "height": WHOLE, "fps": NUMBER}
PROBE |= {"codec": TEXT, "container": TEXT, "rotation": WHOLE}
CLIP = {"clip_id": TEXT, "source_id": TEXT, "source_uri": TEXT, "start_s": NUMBER, "shot": WHOLE, "label": TEXT}
CLIP |= {"split": TEXT, "decoder": TEXT, "crc32": WHOLE} | {f.name: KINDS[str(f.type)] for f in fields(Evidence)}
RECORD = pa.schema(  # as `ingest.commit_unit` writes it; columns of scenes come beside, as they are found
    {
        "video": TEXT,
        "segment": WHOLE,
        "segments": WHOLE,
        "settings": TEXT,
        "source": pa.struct([(field.name, field.type) for field in SCHEMA]),
        "probe": pa.struct(list(PROBE.items())),
        "decoder": TEXT,
        "source_s": NUMBER,
        "rejects": pa.list_(pa.struct(list(REJECT.items()))),
        "quarantined": pa.bool_(),
        "version": TEXT,
        "seconds": NUMBER,
        "data": TEXT,
        "clips": pa.struct([(name, pa.list_(kind)) for name, kind in CLIP.items()]),
    }
)


def parsed(texts: list[bytes]) -> pa.Table:
    """Records' JSON as a table of RECORD, a row each."""
    if not texts:
        return RECORD.empty_table()
    largest = max(map(len, texts))
    found = pyarrow.json.read_json(
        pa.BufferReader(b"".join(texts)),
        pyarrow.json.ReadOptions(block_size=max(16 << 20, 2 * largest)),
        pyarrow.json.ParseOptions(explicit_schema=RECORD, newlines_in_values=True, unexpected_field_behavior="infer"),
    )
    return found.combine_chunks()


def as_table(records: pa.Table | list[dict[str, Any]]) -> pa.Table:
    """Records as columns."""
    return records if isinstance(records, pa.Table) else parsed([storage.json_bytes(record) for record in records])


def compact(out: str) -> None:
    """Move the records of a dataset's folder into Parquet files if there are many."""
    folder = storage.join(out, "work", "commits")
    names = storage.list_names(folder, ".json")
    if len(names) <= MOST_LOOSE:
        return
    units = Ledger.read(out).units
    own = pc.equal(units["file"], -1)
    loose = commit_names(units.filter(own))
    moved = set(names) & set(commit_names(units.filter(pc.invert(own))))  # by a run killed before it removed them
    storage.remove_files(folder, sorted(moved))
    for start in range(0, len(loose), BLOCK):
        block = loose[start : start + BLOCK]
        try:
            records = _read(folder, block)
        except FileNotFoundError:  # another job has moved some of them, and moves the others
            continue
        _write(out, named_units(block), records)
        storage.remove_files(folder, block)


def _read(folder: str, names: list[str]) -> pa.Table:
    with ThreadPoolExecutor(READERS) as pool:
        return parsed(list(pool.map(lambda name: storage.read_bytes(storage.join(folder, name)), names)))


def _write(out: str, units: pa.Table, records: pa.Table) -> None:
    """Put records into a file that is named after them."""
    table = records.drop_columns(["video", "segment", "segments"])
    for name in NAMED:
        table = table.append_column(name, units[name])
    name = hashlib.sha256("\n".join(commit_names(units)).encode()).hexdigest()[:20]
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(storage.join(out, "work", "records", f"{name}.parquet"), buffer.getvalue())


def forget(out: str, videos: Collection[str]) -> None:
    """Remove every record of these videos."""
    if not videos:
        return
    gone = pa.array(videos, pa.string())
    for url in storage.list_files(storage.join(out, "work", "records"), ".parquet"):
        table = storage.read_columns(url)
        keep = table.filter(pc.invert(pc.is_in(table["video"], value_set=gone)))
        if keep.num_rows < table.num_rows:
            if keep.num_rows:
                _write(out, keep.select(NAMED), keep.drop_columns(["generation"]))
            storage.remove(url)
    folder = storage.join(out, "work", "commits")
    units = named_units(storage.list_names(folder, ".json"))
    storage.remove_files(folder, commit_names(units.filter(pc.is_in(units["video"], value_set=gone))))


def tables(ledger: Ledger, videos: Iterable[str] | None = None, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Committed records that count, a few thousand rows at a time, with their place in `ledger.records_of`.

    Args:
        ledger: where they are.
        videos: whose; None: every video's, of every generation.
        columns: of RECORD, dotted below a struct; None: all.

    Raises:
        BadInput: a job that runs has moved some since the ledger was read.
    """
    units = ledger.units if videos is None else ledger.records_of(videos)
    units = units.append_column("place", pa.array(np.arange(units.num_rows)))
    for number, url in enumerate(ledger.files):
        rows = units.filter(pc.equal(units["file"], number)).sort_by("row")
        if rows.num_rows:
            found = storage.read_columns(url, columns)
            yield found.take(rows["row"]).append_column("place", rows["place"])
    loose = units.filter(pc.equal(units["file"], -1))
    folder = storage.join(ledger.out, "work", "commits")
    for start in range(0, loose.num_rows, BLOCK):
        rows = loose.slice(start, BLOCK)
        with unmoved(ledger.out):
            found = _read(folder, commit_names(rows))
        yield found.append_column("place", rows["place"])
