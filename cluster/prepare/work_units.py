"""Units of work: a video, or one time segment of a long one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.sources.lazy_rows import BLOCK, LazyRows
from cluster.sources.manifest import Source, Sources, matches_any_name
from cluster.storage.files import json_bytes
from cluster.storage.urls import join_url


def _name(*identity: str | int | None, digest: str) -> str:
    """Hash (source_id, uri, bytes, version) and the settings digest to a name of 20 hex digits."""
    return hashlib.sha256(json_bytes([*identity, digest])).hexdigest()[:20]


class VideoTable(Mapping[str, Source]):
    """Mapping from video names to sources, stored as columns.

    A name is 20 hex digits that change with a video's id, uri, size, version and the settings digest.
    """

    def __init__(self, names: pa.Array, sources: Sources) -> None:
        self.names, self.sources = names, sources

    @classmethod
    def of(cls, videos: Mapping[str, Source]) -> VideoTable:
        """Convert a mapping from names to sources."""
        if isinstance(videos, VideoTable):
            return videos
        return cls(pa.array(videos, pa.string()), Sources.of(videos.values()))

    @classmethod
    def named(cls, sources: Sources, digest: str) -> VideoTable:
        """Name sources for settings of this digest."""
        columns = sources.table.select(["source_id", "uri", "bytes", "version"])
        names = [
            pa.array([_name(*row, digest=digest) for row in zip(*batch.to_pydict().values(), strict=True)], pa.string())
            for batch in columns.to_batches(max_chunksize=BLOCK)
        ]
        videos = cls(pa.chunked_array(names, pa.string()).combine_chunks(), sources)
        names.clear()
        pa.default_memory_pool().release_unused()  # 0.1 GB at two million videos
        return videos

    def __getitem__(self, name: str) -> Source:
        index = pc.index(self.names, name).as_py()
        if index < 0:
            raise KeyError(name)
        return self.sources[index]

    def __iter__(self) -> Iterator[str]:
        return (name.as_py() for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def without(self, names: Collection[str]) -> VideoTable:
        """Return the videos of which no name (source_id, URI or page) is in `names`; itself if `names` is empty."""
        if not names:
            return self
        mask = pc.invert(matches_any_name(names, self.sources.table)).combine_chunks()
        return VideoTable(self.names.filter(mask), Sources(self.sources.table.filter(mask)))

    def rows(self, places: pa.Array) -> Iterator[tuple[str, Source]]:
        """Yield name and source of the videos at these positions."""
        for start in range(0, len(places), BLOCK):
            block = places.slice(start, BLOCK)
            yield from zip(self.names.take(block).to_pylist(), Sources(self.sources.table.take(block)), strict=True)


@dataclass(frozen=True)
class WorkUnit:
    """A unit of work. `segments` is 0 until the first segment has determined the number of segments."""

    video: str
    source: Source
    generation: int = 0
    segment: int = 0
    segments: int = 0

    @property
    def name(self) -> str:
        """Prefix of the names of all files written for this unit."""
        return f"{self.video}.g{self.generation}.{self.segment}"


class WorkUnitTable(LazyRows[WorkUnit]):
    """Units stored as columns: int32 (N, 4) of (index in `videos`, generation, segment, segments)."""

    def __init__(self, videos: VideoTable, columns: np.ndarray) -> None:
        self.videos, self.columns = videos, columns

    def __len__(self) -> int:
        return len(self.columns)

    def block(self, start: int, end: int) -> list[WorkUnit]:
        """Build the units of rows start..end, end excluded."""
        rows = self.columns[start:end]
        videos = self.videos.rows(pa.array(rows[:, 0]))
        return [WorkUnit(*video, *row) for video, row in zip(videos, rows[:, 1:].tolist(), strict=True)]

    def total(self, column: str) -> tuple[float, int]:
        """Sum a column of the sources over the units; each segment takes an equal part of its video's value.

        Returns:
            The sum over units with a value, and the number of units without one.
        """
        values = self.videos.sources.table[column].take(pa.array(self.columns[:, 0])).cast(pa.float64())
        parts = np.maximum(1, self.columns[:, 3])
        return float(np.nansum(values.to_numpy() / parts)), values.null_count


def commit_url(out: str, unit: WorkUnit, segments: int) -> str:
    """Return the url of a unit's commit record for a video of this number of segments."""
    return join_url(out, "work", "commits", f"{unit.name}of{segments}.json")


def video_name_column(videos: Iterable[str]) -> pa.Array:
    """Return the names of videos as an Arrow array."""
    return videos.names if isinstance(videos, VideoTable) else pa.array(videos, pa.string())
