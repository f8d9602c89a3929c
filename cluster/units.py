"""Units of work and their commit records: what is done is told by the names in one folder.

A unit is a video, or one time segment of a long one. Its commit record is put only if absent, under

    work/commits/{video}.g{generation}.{segment}of{segments}.json

so one listing tells what is done, without reading a record. The video's name follows from the file, its version and the
settings, never from a position in a list; the number of segments from its duration. A generation begins when a video is
queued again on purpose: an empty file work/requeued/{video}.g{generation}. Records of older generations count no more.

Of millions, most are moved together, some thousand in a Parquet file (`cluster/records.py`). A unit whose record is in
both, because a move was cut off, counts once.
"""

from __future__ import annotations

import hashlib
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

from cluster import storage
from cluster.rows import BLOCK, Rows
from cluster.sources import Source, Sources
from vgan.errors import BadInput

READERS = 32  # threads that wait for an object store's answers
NAME = r"^(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)\.(?P<segment>\d+)of(?P<segments>\d+)\.json$"
MARKER = re.compile(r"(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)")
UNITS = pa.schema(
    [
        pa.field("video", pa.string()),
        pa.field("generation", pa.int32()),
        pa.field("segment", pa.int32()),
        pa.field("segments", pa.int32()),
        pa.field("file", pa.int32()),  # which of `Ledger.files` holds its record; -1: it has a file of its own
        pa.field("row", pa.int32()),  # in that file
    ]
)
NAMED = UNITS.names[:4]  # what the name of a record's file tells


def video_name(source: Source, digest: str) -> str:
    """20 hex digits that change with a video's place, size, version and the settings."""
    return _name(source.source_id, source.uri, source.bytes, source.version, digest=digest)


def _name(*place: str | int | None, digest: str) -> str:
    return hashlib.sha256(storage.json_bytes([*place, digest])).hexdigest()[:20]


class Videos(Mapping[str, Source]):
    """Sources under the names that their work goes by."""

    def __init__(self, names: pa.Array, sources: Sources) -> None:
        self.names, self.sources = names, sources

    @classmethod
    def of(cls, videos: Mapping[str, Source]) -> Videos:
        """The same videos as columns."""
        if isinstance(videos, Videos):
            return videos
        return cls(pa.array(videos, pa.string()), Sources.of(videos.values()))

    @classmethod
    def named(cls, sources: Sources, digest: str) -> Videos:
        """The videos as they are called with settings of this digest."""
        columns = sources.table.select(["source_id", "uri", "bytes", "version"])
        names = [
            pa.array([_name(*row, digest=digest) for row in zip(*batch.to_pydict().values(), strict=True)], pa.string())
            for batch in columns.to_batches(max_chunksize=BLOCK)
        ]
        found = cls(pa.chunked_array(names, pa.string()).combine_chunks(), sources)
        names.clear()
        pa.default_memory_pool().release_unused()  # a tenth of a gigabyte at two million
        return found

    def __getitem__(self, name: str) -> Source:
        place = pc.index(self.names, name).as_py()
        if place < 0:
            raise KeyError(name)
        return self.sources[place]

    def __iter__(self) -> Iterator[str]:
        return (name.as_py() for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, places: pa.Array) -> Iterator[tuple[str, Source]]:
        """Name and source of the videos at these places."""
        for start in range(0, len(places), BLOCK):
            block = places.slice(start, BLOCK)
            yield from zip(self.names.take(block).to_pylist(), Sources(self.sources.table.take(block)), strict=True)


@dataclass(frozen=True)
class Unit:
    """One piece of work. The first segment finds out how many there are: until then `segments` is 0."""

    video: str
    source: Source
    generation: int = 0
    segment: int = 0
    segments: int = 0

    @property
    def name(self) -> str:
        """For the files that an attempt at this unit writes."""
        return f"{self.video}.g{self.generation}.{self.segment}"


class Units(Rows[Unit]):
    """Units as columns: which of `videos`, generation, segment and segments, int32 (N, 4)."""

    def __init__(self, videos: Videos, columns: np.ndarray) -> None:
        self.videos, self.columns = videos, columns

    def __len__(self) -> int:
        return len(self.columns)

    def block(self, start: int, end: int) -> list[Unit]:
        rows = self.columns[start:end]
        videos = self.videos.rows(pa.array(rows[:, 0]))
        return [Unit(*video, *row) for video, row in zip(videos, rows[:, 1:].tolist(), strict=True)]

    def total(self, column: str) -> tuple[float, int]:
        """A column of the sources added up over the units, segments taking equal parts; of how many it is not known."""
        values = self.videos.sources.table[column].take(pa.array(self.columns[:, 0])).cast(pa.float64())
        parts = np.maximum(1, self.columns[:, 3])
        return float(np.nansum(values.to_numpy() / parts)), values.null_count


def commit_url(out: str, unit: Unit, segments: int) -> str:
    """Where a unit's record goes, once its video's number of segments is known."""
    return storage.join(out, "work", "commits", f"{unit.name}of{segments}.json")


@dataclass(frozen=True)
class Ledger:
    """What the names tell: every unit that is committed, where its record is, and which videos were queued again."""

    out: str
    units: pa.Table  # of UNITS, one row a unit
    files: list[str]  # urls of Parquet files of records
    generations: dict[str, int]  # of videos that were queued again

    @classmethod
    def read(cls, out: str) -> Ledger:
        """The ledger of a dataset's folder; empty where there is none."""
        # Files of one record first: what is moved meanwhile is then seen twice rather than not at all.
        loose = _placed(named_units(storage.list_names(storage.join(out, "work", "commits"), ".json")), -1)
        files = storage.list_files(storage.join(out, "work", "records"), ".parquet")
        moved = [_placed(storage.read_columns(url, NAMED), number) for number, url in enumerate(files)]
        generations: dict[str, int] = {}
        for name in storage.list_names(storage.join(out, "work", "requeued")):
            if found := MARKER.fullmatch(name):
                generations[found["video"]] = max(generations.get(found["video"], 0), int(found["generation"]))
        return cls(out, _each_once(pa.concat_tables([*moved, loose])), files, generations)

    def generation(self, video: str) -> int:
        """The generation that counts."""
        return self.generations.get(video, 0)

    @cached_property
    def counting(self) -> pa.Table:
        """The units of the generations that count."""
        return self.units.filter(pc.equal(self.units["generation"], self._wanted(self.units["video"])))

    def _wanted(self, videos: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """The generation that counts of each video, int32."""
        known, numbers = pa.array(self.generations, pa.string()), pa.array(self.generations.values(), pa.int32())
        return pc.fill_null(numbers.take(pc.index_in(videos, value_set=known)), 0)

    @cached_property
    def _begun(self) -> pa.Table:
        """One row a video with a record that counts: video, segment_count, segments_max."""
        return self.counting.group_by("video").aggregate([("segment", "count"), ("segments", "max")])

    def progress(self, videos: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of each of these videos how many segments are committed, and how many there are or 0; int32 (N,)."""
        places = pc.index_in(names_of(videos), value_set=self._begun["video"])
        counts = [pc.fill_null(self._begun[name].take(places), 0) for name in ("segment_count", "segments_max")]
        return counts[0].cast(pa.int32()).to_numpy(), counts[1].cast(pa.int32()).to_numpy()

    def is_complete(self, video: str) -> bool:
        """Whether every segment of the video's generation that counts is committed."""
        (done,), (segments,) = self.progress([video])
        return bool(segments and done == segments)

    def open_units(self, videos: Mapping[str, Source]) -> Units:
        """What is left to do of these videos (by name): missing segments of those begun, the first of others."""
        asked = Videos.of(videos)
        done, segments = self.progress(asked)
        generation = self._wanted(asked.names).to_numpy()
        new = np.flatnonzero(segments == 0).astype(np.int32)
        rows = [np.stack([new, generation[new], np.zeros_like(new), np.zeros_like(new)], axis=1)]
        begun = np.flatnonzero((segments > 0) & (done < segments))
        committed = self._segments_of(asked.names.take(pa.array(begun)))
        for place in begun.tolist():
            missing = np.setdiff1d(np.arange(segments[place]), committed[asked.names[place].as_py()])
            rows.append(np.array([(place, generation[place], s, segments[place]) for s in missing], np.int32))
        columns = np.concatenate(rows)
        return Units(asked, columns[np.argsort(columns[:, 0], kind="stable")] if len(begun) else columns)

    def _segments_of(self, videos: pa.Array) -> dict[str, list[int]]:
        """The committed segments of each of these videos."""
        rows = self.counting.filter(pc.is_in(self.counting["video"], value_set=videos))
        found: dict[str, list[int]] = {}
        for video, segment in zip(rows["video"].to_pylist(), rows["segment"].to_pylist(), strict=True):
            found.setdefault(video, []).append(segment)
        return found

    def records_of(self, videos: Iterable[str]) -> pa.Table:
        """Rows of UNITS: these videos' committed units that count, in the order given, segments ascending."""
        place = pc.index_in(self.counting["video"], value_set=names_of(videos))
        rows = self.counting.append_column("place", place).filter(place.is_valid())
        return rows.sort_by([("place", "ascending"), ("segment", "ascending")]).select(UNITS.names)

    def commit_urls(self, videos: Iterable[str]) -> list[str]:
        """Where the records of `records_of` are: a file, or a row of one as `file#row`."""
        folder, units = storage.join(self.out, "work", "commits"), self.records_of(videos)
        own = zip(units["file"].to_pylist(), units["row"].to_pylist(), commit_names(units), strict=True)
        return [storage.join(folder, name) if at < 0 else f"{self.files[at]}#{row}" for at, row, name in own]

    def all_videos(self) -> list[str]:
        """Names of every video with a record that counts."""
        return sorted(self._begun["video"].to_pylist())


def names_of(videos: Iterable[str]) -> pa.Array:
    """Names of videos as a column."""
    return videos.names if isinstance(videos, Videos) else pa.array(videos, pa.string())


def named_units(names: list[str]) -> pa.Table:
    """The columns NAMED of UNITS, of the commit records among these names of files."""
    found = pc.extract_regex(pa.array(names, pa.string()), NAME).drop_null()
    return pa.table({name: pc.struct_field(found, name).cast(UNITS.field(name).type) for name in NAMED})


def commit_names(units: pa.Table) -> list[str]:
    """Names of the files that these units' records have, or had, of their own."""
    columns = (units[name].to_pylist() for name in NAMED)
    return [
        f"{video}.g{generation}.{segment}of{segments}.json"
        for video, generation, segment, segments in zip(*columns, strict=True)
    ]


def _placed(units: pa.Table, file: int) -> pa.Table:
    """Rows of UNITS, of records in one file or (-1) in files of their own."""
    numbers = np.arange(units.num_rows, dtype=np.int32)
    placed = units.append_column("file", pa.array(np.full_like(numbers, file))).append_column("row", pa.array(numbers))
    return placed.select(UNITS.names).cast(UNITS)


def _each_once(units: pa.Table) -> pa.Table:
    """The first row of each unit, of those that know of the most segments: a second try may find none to read."""
    num = units.num_rows
    order = pa.array(np.arange(num) - num * units["segments"].to_numpy().astype(np.int64))
    first = units.append_column("order", order).group_by(["video", "generation", "segment"])
    kept = first.aggregate([("order", "min")])["order_min"].to_numpy()
    return units if len(kept) == num else units.take(pa.array(np.sort(kept % num)))


def read_records(urls: list[str]) -> list[dict[str, Any]]:
    """Commit records by `Ledger.commit_urls`, many at a time, in the order given.

    Raises:
        BadInput: a job that runs has moved some since the ledger was read.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {url.rpartition("#")[0]: {} for url in urls if ".parquet#" in url}
    for file in rows:
        rows[file] = dict(enumerate(map(_record, storage.read_columns(file).to_pylist())))

    def read(url: str) -> dict[str, Any]:
        file, _, row = url.rpartition("#")
        return rows[file][int(row)] if file in rows else storage.read_json(url)

    with ThreadPoolExecutor(READERS) as pool, unmoved(urls[0].rpartition("/work/")[0] if urls else ""):
        return list(pool.map(read, urls))


@contextmanager
def unmoved(place: str) -> Iterator[None]:
    """Say so where a record that the ledger knows is gone."""
    try:
        yield
    except FileNotFoundError as fault:
        raise BadInput(f"a job that runs moves the records of {place!r} meanwhile: run this again") from fault


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """A record as it was before columns filled in what it does not have."""
    record = row | {"clips": {name: values for name, values in row["clips"].items() if values is not None}}
    del record["generation"]
    return record


def queue_again(out: str, ledger: Ledger, videos: Iterable[str]) -> None:
    """Begin a new generation of each of these videos."""
    for video in videos:
        marker = f"{video}.g{ledger.generation(video) + 1}"
        storage.write_bytes(storage.join(out, "work", "requeued", marker), b"")
