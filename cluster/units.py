"""Units of work and their commit records: what is done is told by the names in one folder.

A unit is a video, or one time segment of a long one. Its commit record is put only if absent, under

    work/commits/{video}.g{generation}.{segment}of{segments}.json

so one listing tells what is done, without reading a record. The video's name follows from the file, its version and the
settings, never from a position in a list; the number of segments from its duration. A generation begins when a video is
queued again on purpose: an empty file work/requeued/{video}.g{generation}. Records of older generations count no more.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster import storage
from cluster.sources import Source

READERS = 32  # threads that wait for an object store's answers
NAME = re.compile(r"(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)\.(?P<segment>\d+)of(?P<segments>\d+)\.json")
MARKER = re.compile(r"(?P<video>[0-9a-f]{20})\.g(?P<generation>\d+)")


def video_name(source: Source, digest: str) -> str:
    """20 hex digits that change with a video's place, size, version and the settings."""
    key = [source.source_id, source.uri, source.bytes, source.version, digest]
    return hashlib.sha256(storage.json_bytes(key)).hexdigest()[:20]


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


def commit_url(out: str, unit: Unit, segments: int) -> str:
    """Where a unit's record goes, once its video's number of segments is known."""
    return storage.join(out, "work", "commits", f"{unit.name}of{segments}.json")


@dataclass(frozen=True)
class Ledger:
    """What the names tell: the record of each (video, generation) by segment, and how many segments there are."""

    segments: dict[tuple[str, int], int]
    records: dict[tuple[str, int], dict[int, str]]
    generations: dict[str, int]  # of videos that were queued again

    @classmethod
    def read(cls, out: str) -> Ledger:
        """The ledger of a dataset's folder; empty where there is none."""
        segments: dict[tuple[str, int], int] = {}
        records: dict[tuple[str, int], dict[int, str]] = {}
        for url in storage.list_files(storage.join(out, "work", "commits"), ".json"):
            if found := NAME.fullmatch(os.path.basename(url)):
                key = found["video"], int(found["generation"])
                segments[key] = int(found["segments"])
                records.setdefault(key, {})[int(found["segment"])] = url
        generations: dict[str, int] = {}
        for url in storage.list_files(storage.join(out, "work", "requeued")):
            if found := MARKER.fullmatch(os.path.basename(url)):
                generations[found["video"]] = max(generations.get(found["video"], 0), int(found["generation"]))
        return cls(segments, records, generations)

    def generation(self, video: str) -> int:
        """The generation that counts."""
        return self.generations.get(video, 0)

    def is_complete(self, video: str) -> bool:
        """Whether every segment of the video's generation that counts is committed."""
        key = video, self.generation(video)
        return key in self.segments and len(self.records[key]) == self.segments[key]

    def open_units(self, sources: dict[str, Source]) -> list[Unit]:
        """What is left to do of these videos (by name): missing segments of those begun, the first of others."""
        units = []
        for video, source in sources.items():
            key = video, self.generation(video)
            if key not in self.segments:
                units.append(Unit(video, source, key[1]))
                continue
            missing = set(range(self.segments[key])) - set(self.records[key])
            units += [Unit(video, source, key[1], s, self.segments[key]) for s in sorted(missing)]
        return units

    def commit_urls(self, videos: Iterable[str]) -> list[str]:
        """The records of these videos' committed units that count, in the order given, segments ascending."""
        keys = [(video, self.generation(video)) for video in videos]
        return [url for key in keys for _, url in sorted(self.records.get(key, {}).items())]

    def all_videos(self) -> list[str]:
        """Names of every video with a record that counts."""
        return sorted({video for video, generation in self.records if generation == self.generation(video)})


def read_records(urls: list[str]) -> list[dict[str, Any]]:
    """Commit records, many at a time, in the order given."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(storage.read_json, urls))


def queue_again(out: str, ledger: Ledger, videos: Iterable[str]) -> None:
    """Begin a new generation of each of these videos."""
    for video in videos:
        marker = f"{video}.g{ledger.generation(video) + 1}"
        storage.write_bytes(storage.join(out, "work", "requeued", marker), b"")
