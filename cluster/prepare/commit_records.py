"""Commit records at scale: compaction into Parquet files, and columnar reading of millions of records.

A record is first put as an individual JSON file (`cluster/prepare/ledger.py`), which commits its unit. Once many
thousands of these exist, blocks of them are written to work/records/, one Parquet file per block, and the JSON files
are removed. If the job is killed in between, a record is in both places and counts once.
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

from cluster.prepare.ledger import NAME_COLUMNS, READERS, Ledger, format_unit_names, parse_unit_names, raise_if_moved
from cluster.sources.manifest import SCHEMA
from cluster.storage.files import (
    json_bytes,
    list_files,
    list_names,
    read_bytes,
    read_columns,
    remove_files,
    remove_tree,
    write_bytes,
)
from cluster.storage.urls import join_url
from vgan.records import ClipScores

MOST_LOOSE = 16384  # up to so many individual record files are not compacted
BLOCK = 8192  # records per Parquet file, and in memory during compaction
TEXT, NUMBER, WHOLE = pa.string(), pa.float64(), pa.int64()
KINDS = {"float": NUMBER, "int": WHOLE, "bool": pa.bool_(), "str": TEXT}
REJECT = {"start_s": NUMBER, "stage": TEXT, "reason": TEXT, "detail": TEXT}
PROBE = {"duration_s": NUMBER, "width": WHOLE, "height": WHOLE, "fps": NUMBER}
PROBE |= {"codec": TEXT, "container": TEXT, "rotation": WHOLE}
PROBE |= {"deinterlaced": pa.bool_(), "cadence": TEXT, "notes": TEXT}
CLIP = {"clip_id": TEXT, "source_id": TEXT, "source_uri": TEXT, "start_s": NUMBER, "shot": WHOLE, "label": TEXT}
CLIP |= {"split": TEXT, "decoder": TEXT, "crc32": WHOLE} | {f.name: KINDS[str(f.type)] for f in fields(ClipScores)}
RECORD = pa.schema(  # as `process_unit.process_unit` writes it; scene columns are added with inferred types
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
        "clips": pa.struct([(name, pa.list_(type_)) for name, type_ in CLIP.items()]),
    }
)


def parse_records(texts: list[bytes]) -> pa.Table:
    """Parse records, one JSON document each, to a table of schema RECORD with one row per record."""
    if not texts:
        return RECORD.empty_table()
    largest = max(map(len, texts))
    table = pyarrow.json.read_json(
        pa.BufferReader(b"".join(texts)),
        pyarrow.json.ReadOptions(block_size=max(16 << 20, 2 * largest)),
        pyarrow.json.ParseOptions(explicit_schema=RECORD, newlines_in_values=True, unexpected_field_behavior="infer"),
    )
    return table.combine_chunks()


def to_table(records: pa.Table | list[dict[str, Any]]) -> pa.Table:
    """Convert records to a table of schema RECORD; a table is returned unchanged."""
    return records if isinstance(records, pa.Table) else parse_records([json_bytes(record) for record in records])


def compact_records(out: str) -> None:
    """Move a dataset's individual records into Parquet files if there are more than MOST_LOOSE."""
    folder = join_url(out, "work", "commits")
    names = list_names(folder, ".json")
    if len(names) <= MOST_LOOSE:
        return
    units = Ledger.read(out).units
    is_individual = pc.equal(units["file"], -1)
    individual = format_unit_names(units.filter(is_individual))
    # Moved by a run that was killed before it removed the individual files.
    moved = set(names) & set(format_unit_names(units.filter(pc.invert(is_individual))))
    remove_files(folder, sorted(moved))
    for start in range(0, len(individual), BLOCK):
        block = individual[start : start + BLOCK]
        try:
            records = _read(folder, block)
        except FileNotFoundError:  # another job is compacting this block
            continue
        _write(out, parse_unit_names(block), records)
        remove_files(folder, block)


def _read(folder: str, names: list[str]) -> pa.Table:
    """Read individual record files in parallel to a table of schema RECORD."""
    with ThreadPoolExecutor(READERS) as pool:
        return parse_records(list(pool.map(lambda name: read_bytes(join_url(folder, name)), names)))


def _write(out: str, units: pa.Table, records: pa.Table) -> None:
    """Write records to a Parquet file named by a hash of their units."""
    table = records.drop_columns(["video", "segment", "segments"])
    for name in NAME_COLUMNS:
        table = table.append_column(name, units[name])
    name = hashlib.sha256("\n".join(format_unit_names(units)).encode()).hexdigest()[:20]
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(join_url(out, "work", "records", f"{name}.parquet"), buffer.getvalue())


def remove_records(out: str, videos: Collection[str]) -> None:
    """Remove all records of these videos, of every generation."""
    if not videos:
        return
    removed = pa.array(videos, pa.string())
    for url in list_files(join_url(out, "work", "records"), ".parquet"):
        table = read_columns(url)
        remaining = table.filter(pc.invert(pc.is_in(table["video"], value_set=removed)))
        if remaining.num_rows < table.num_rows:
            if remaining.num_rows:
                _write(out, remaining.select(NAME_COLUMNS), remaining.drop_columns(["generation"]))
            remove_tree(url)
    folder = join_url(out, "work", "commits")
    units = parse_unit_names(list_names(folder, ".json"))
    remove_files(folder, format_unit_names(units.filter(pc.is_in(units["video"], value_set=removed))))


def iter_record_tables(
    ledger: Ledger, videos: Iterable[str] | None = None, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield committed records of the current generation, a few thousand rows per table.

    The column `place` is each record's row number in `ledger.records_of(videos)`.

    Args:
        ledger: locations of the records.
        videos: names of videos; None yields the records of all videos and generations.
        columns: columns of RECORD, dotted for fields of a struct; None reads all. Individual files are read completely.

    Raises:
        InputError: a running job has moved records since the ledger was read.
    """
    units = ledger.units if videos is None else ledger.records_of(videos)
    units = units.append_column("place", pa.array(np.arange(units.num_rows)))
    for file, url in enumerate(ledger.files):
        rows = units.filter(pc.equal(units["file"], file)).sort_by("row")
        if rows.num_rows:
            records = read_columns(url, columns)
            yield records.take(rows["row"]).append_column("place", rows["place"])
    individual = units.filter(pc.equal(units["file"], -1))
    folder = join_url(ledger.out, "work", "commits")
    for start in range(0, individual.num_rows, BLOCK):
        rows = individual.slice(start, BLOCK)
        with raise_if_moved(ledger.out):
            records = _read(folder, format_unit_names(rows))
        yield records.append_column("place", rows["place"])
