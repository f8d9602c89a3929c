"""Units of work and their commit records: the file names in one folder are the ledger of committed units.

A unit is a video, or one time segment of a long one. Its commit record is put, if none exists yet, under

    work/commits/{video}.g{generation}.{segment}of{segments}.json

so one listing gives all committed units without reading a record. The video's name depends on the file, its version and
the settings, never on its position in a list; the number of segments depends on its duration. Requeuing a video starts
a new generation, marked by an empty file work/requeued/{video}.g{generation}; records of older generations are ignored.

With millions of units, most records are moved into Parquet files of some thousand records
(`cluster/prepare/commit_records.py`). A unit whose record is in both places, because a move was
interrupted, counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.prepare.work_units import VideoTable, WorkUnitTable, video_name_column
from cluster.sources.manifest import Source
from cluster.storage.files import list_files, list_names, read_columns, read_json, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError

READERS = 32  # threads; they mostly wait for an object store
NAME = r"^(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)\.(?P<segment>\d+)of(?P<segments>\d+)\.json$"
REQUEUE_MARKER = re.compile(r"(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)")
UNITS = pa.schema(
    [
        pa.field("video", pa.string()),
        pa.field("generation", pa.int32()),
        pa.field("segment", pa.int32()),
        pa.field("segments", pa.int32()),
        pa.field("file", pa.int32()),  # index in `Ledger.files` of the file with its record; -1: individual JSON file
        pa.field("row", pa.int32()),  # in that file
    ]
)
NAME_COLUMNS = UNITS.names[:4]  # columns encoded in the name of a record's JSON file


@dataclass(frozen=True)
class Ledger:
    """Snapshot of all committed units, the locations of their records, and the generations of requeued videos."""

    out: str
    units: pa.Table  # schema UNITS, one row per unit
    files: list[str]  # urls of Parquet files of records
    generations: dict[str, int]  # of requeued videos; 0 for all others

    @classmethod
    def read(cls, out: str) -> Ledger:
        """Read the ledger of a dataset's folder; empty if the folder does not exist."""
        # Individual files first: a record moved between the two listings is then listed twice rather than missed.
        individual = _with_location(parse_unit_names(list_names(join_url(out, "work", "commits"), ".json")), -1)
        files = list_files(join_url(out, "work", "records"), ".parquet")
        moved = [_with_location(read_columns(url, NAME_COLUMNS), index) for index, url in enumerate(files)]
        generations: dict[str, int] = {}
        for name in list_names(join_url(out, "work", "requeued")):
            if match := REQUEUE_MARKER.fullmatch(name):
                generations[match["video"]] = max(generations.get(match["video"], 0), int(match["generation"]))
        return cls(out, _deduplicated(pa.concat_tables([*moved, individual])), files, generations)

    def generation(self, video: str) -> int:
        """Return the current generation of a video."""
        return self.generations.get(video, 0)

    @cached_property
    def current_units(self) -> pa.Table:
        """Committed units of the current generations."""
        return self.units.filter(pc.equal(self.units["generation"], self._current_generations(self.units["video"])))

    def _current_generations(self, videos: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Return the current generation of each video, int32."""
        requeued, generations = pa.array(self.generations, pa.string()), pa.array(self.generations.values(), pa.int32())
        return pc.fill_null(generations.take(pc.index_in(videos, value_set=requeued)), 0)

    @cached_property
    def _started_videos(self) -> pa.Table:
        """One row per video with a current record: video, segment_count, segments_max."""
        return self.current_units.group_by("video").aggregate([("segment", "count"), ("segments", "max")])

    def progress(self, videos: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return committed and total segments of each video, two int32 (N,); total 0 if not started."""
        indices = pc.index_in(video_name_column(videos), value_set=self._started_videos["video"])
        counts = [
            pc.fill_null(self._started_videos[name].take(indices), 0) for name in ("segment_count", "segments_max")
        ]
        return counts[0].cast(pa.int32()).to_numpy(), counts[1].cast(pa.int32()).to_numpy()

    def is_complete(self, video: str) -> bool:
        """Return True if every segment of the video's current generation is committed."""
        (done,), (segments,) = self.progress([video])
        return bool(segments and done == segments)

    def pending_units(self, videos: Mapping[str, Source]) -> WorkUnitTable:
        """List the units to do for these videos (by name): missing segments of started ones, the first of others."""
        requested = VideoTable.of(videos)
        done, segments = self.progress(requested)
        generation = self._current_generations(requested.names).to_numpy()
        new = np.flatnonzero(segments == 0).astype(np.int32)
        rows = [np.stack([new, generation[new], np.zeros_like(new), np.zeros_like(new)], axis=1)]
        started = np.flatnonzero((segments > 0) & (done < segments))
        committed = self._segments_of(requested.names.take(pa.array(started)))
        for index in started.tolist():
            missing = np.setdiff1d(np.arange(segments[index]), committed[requested.names[index].as_py()])
            rows.append(np.array([(index, generation[index], s, segments[index]) for s in missing], np.int32))
        columns = np.concatenate(rows)
        return WorkUnitTable(requested, columns[np.argsort(columns[:, 0], kind="stable")] if len(started) else columns)

    def _segments_of(self, videos: pa.Array) -> dict[str, list[int]]:
        """Return the committed segments of each of these videos."""
        rows = self.current_units.filter(pc.is_in(self.current_units["video"], value_set=videos))
        segments: dict[str, list[int]] = {}
        for video, segment in zip(rows["video"].to_pylist(), rows["segment"].to_pylist(), strict=True):
            segments.setdefault(video, []).append(segment)
        return segments

    def records_of(self, videos: Iterable[str]) -> pa.Table:
        """Return these videos' committed units of the current generation (UNITS), ordered as given, then by segment."""
        position = pc.index_in(self.current_units["video"], value_set=video_name_column(videos))
        rows = self.current_units.append_column("place", position).filter(position.is_valid())
        return rows.sort_by([("place", "ascending"), ("segment", "ascending")]).select(UNITS.names)

    def commit_urls(self, videos: Iterable[str]) -> list[str]:
        """Return the locations of the records of `records_of`: url of a JSON file, or `file#row` in a Parquet file."""
        folder, units = join_url(self.out, "work", "commits"), self.records_of(videos)
        locations = zip(units["file"].to_pylist(), units["row"].to_pylist(), format_unit_names(units), strict=True)
        return [join_url(folder, name) if file < 0 else f"{self.files[file]}#{row}" for file, row, name in locations]

    def all_videos(self) -> list[str]:
        """Return the names of all videos with a record of the current generation, sorted."""
        return sorted(self._started_videos["video"].to_pylist())


def parse_unit_names(names: list[str]) -> pa.Table:
    """Parse file names of commit records to the columns NAMED of UNITS; other names are dropped."""
    fields = pc.extract_regex(pa.array(names, pa.string()), NAME).drop_null()
    return pa.table({name: pc.struct_field(fields, name).cast(UNITS.field(name).type) for name in NAME_COLUMNS})


def format_unit_names(units: pa.Table) -> list[str]:
    """Format the names of these units' individual record files."""
    columns = (units[name].to_pylist() for name in NAME_COLUMNS)
    return [
        f"{video}.g{generation}.{segment}of{segments}.json"
        for video, generation, segment, segments in zip(*columns, strict=True)
    ]


def _with_location(units: pa.Table, file: int) -> pa.Table:
    """Add the columns `file` (an index, or -1 for individual files) and `row` to units of one file."""
    numbers = np.arange(units.num_rows, dtype=np.int32)
    located = units.append_column("file", pa.array(np.full_like(numbers, file))).append_column("row", pa.array(numbers))
    return located.select(UNITS.names).cast(UNITS)


def _deduplicated(units: pa.Table) -> pa.Table:
    """Drop repeated units; keep the first row among those with the most segments.

    A second attempt may fail to read the video and therefore record fewer segments.
    """
    num = units.num_rows
    order = pa.array(np.arange(num) - num * units["segments"].to_numpy().astype(np.int64))
    first = units.append_column("order", order).group_by(["video", "generation", "segment"])
    rows = first.aggregate([("order", "min")])["order_min"].to_numpy()
    return units if len(rows) == num else units.take(pa.array(np.sort(rows % num)))


def read_records(urls: list[str]) -> list[dict[str, Any]]:
    """Read commit records at the locations of `Ledger.commit_urls`, in parallel, in the order given.

    Raises:
        InputError: a running job has moved records since the ledger was read.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {url.rpartition("#")[0]: {} for url in urls if ".parquet#" in url}
    for file in rows:
        rows[file] = dict(enumerate(map(_record, read_columns(file).to_pylist())))

    def read(url: str) -> dict[str, Any]:
        file, _, row = url.rpartition("#")
        return rows[file][int(row)] if file in rows else read_json(url)

    with ThreadPoolExecutor(READERS) as pool, raise_if_moved(urls[0].rpartition("/work/")[0] if urls else ""):
        return list(pool.map(read, urls))


@contextmanager
def raise_if_moved(place: str) -> Iterator[None]:
    """Convert FileNotFoundError inside the context, raised for a record that has moved, into InputError.

    Args:
        place: dataset folder, for the message.

    Raises:
        InputError: a file in the ledger no longer exists.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"a running job has moved records of {place!r} in the meantime: run this again") from error


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """Restore a record read from Parquet: drop the columns that the file's schema added as nulls."""
    record = row | {"clips": {name: values for name, values in row["clips"].items() if values is not None}}
    del record["generation"]
    return record


def requeue_videos(out: str, ledger: Ledger, videos: Iterable[str]) -> None:
    """Requeue videos: start a new generation of each."""
    for video in videos:
        marker = f"{video}.g{ledger.generation(video) + 1}"
        write_bytes(join_url(out, "work", "requeued", marker), b"")
