"""The sources manifest: one row a video, whatever it came from."""

from __future__ import annotations

import csv
import fnmatch
import io
import posixpath
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from vgan.errors import BadInput
from vgan.video.strips import read_list

VIDEO_KINDS = "3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mxf ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in VIDEO_KINDS.split())
STRIP_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png")
)  # clips stored as one picture; taken only where they are asked for
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # where the bytes are
        pa.field("source_id", pa.string(), nullable=False),  # stable name inside the corpus
        pa.field("bytes", pa.int64()),  # size when listed; a change under the same name is a new source
        pa.field("version", pa.string()),  # ETag or time of change when listed: tells the same of a change in place
        pa.field("duration_s", pa.float64()),  # where it is known, progress is told in hours from the start
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),  # train or test
        # Whose it is and what may be done with it, where the origin tells; goes with every clip (shards.clip_schema).
        pa.field("license", pa.string()),  # its name, as the origin has it
        pa.field("license_url", pa.string()),
        pa.field("author", pa.string()),
        pa.field("page", pa.string()),  # url where people see the video
        pa.field("tags", pa.string()),  # separated by commas
    ]
)
CREDITS = ("license", "license_url", "author", "page", "tags")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video to prepare."""

    uri: str
    source_id: str
    bytes: int | None = None
    version: str | None = None
    duration_s: float | None = None
    label: str | None = None
    split: str | None = None
    license: str | None = None
    license_url: str | None = None
    author: str | None = None
    page: str | None = None
    tags: str | None = None

    @property
    def credits(self) -> dict[str, str | None]:
        """Whose it is and what may be done with it."""
        return {name: getattr(self, name) for name in CREDITS}

    @property
    def names(self) -> set[str]:
        """What a deletion list may call it by."""
        return {name for name in (self.source_id, self.uri, self.page) if name}


def list_folder(url: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> tuple[list[Source], int]:
    """Videos below a folder, sorted by name, and how many files were passed over.

    A video is known by its suffix, one of `suffixes`; a name that is not UTF-8 cannot stand in a manifest.

    Raises:
        BadInput: no such folder.
    """
    found = storage.find(url)
    if found is None:
        raise BadInput(f"no folder at {url!r}: give an existing folder of videos")
    _, root = storage.filesystem(url)
    sources = []
    for path in sorted(found):
        name = posixpath.relpath(path, root)
        if posixpath.splitext(path)[1].lower() in suffixes and _is_utf8(name):
            info = found[path]
            version = storage.listing_version(info)
            sources.append(Source(uri=storage.join(url, name), source_id=name, bytes=info["size"], version=version))
    return sources, len(found) - len(sources)


def list_glob(url: str) -> tuple[list[Source], int]:
    """As `list_folder`, of the files whose path fits a glob on any file system. A star stands for slashes too.

    Names count from the last folder before the first star. A glob that ends in .jpg or .png takes strips.
    """
    folder, _, _ = url.partition("*")[0].rpartition("/")
    pattern = url[len(folder) :].lstrip("/")
    strips = posixpath.splitext(pattern)[1].lower() in STRIP_SUFFIXES
    found, others = list_folder(
        folder or ("/" if url.startswith("/") else "."), STRIP_SUFFIXES if strips else VIDEO_SUFFIXES
    )
    sources = [s for s in found if fnmatch.fnmatchcase(s.source_id, pattern)]
    return sources, others + len(found) - len(sources)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_sources(url: str) -> list[Source]:
    """Sources named by a manifest (.parquet), a list (.txt, .csv with a `uri` column), a folder or a glob.

    Relative paths in a list are meant from the list's own folder, as in the original's lists.

    Raises:
        BadInput: nothing there, no video in it, or a file that does not hold what its name says.
    """
    if "*" in url:
        sources, _ = list_glob(url)
    elif url.endswith((".parquet", ".txt", ".csv")):
        sources = read_manifest_rows(url)
    else:
        sources, _ = list_folder(url)
    if not sources:
        raise BadInput(f"no video in {url!r}: known kinds are {VIDEO_KINDS}")
    twice = len(sources) - len({s.source_id for s in sources})
    if twice:
        raise BadInput(f"{twice} source_id values in {url!r} occur more than once: they name videos and must be unique")
    for uri in {s.uri.partition("://")[0]: s.uri for s in sources if "://" in s.uri}.values():
        storage.filesystem(uri)  # a protocol that no worker will speak is told now
    return sources


def write_sources(sources: list[Source], url: str) -> None:
    """Write the manifest as Parquet, at once."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(s) for s in sources], SCHEMA), buffer)
    storage.write_bytes(url, buffer.getvalue())


def read_manifest_rows(url: str) -> list[Source]:
    """Every row of a manifest or list, in its order, names that occur twice included.

    Raises:
        BadInput: as `read_sources`, but for names that occur more than once.
    """
    if not storage.exists(url):
        raise BadInput(f"no sources manifest at {url!r}: make one with `python -m jobs.acquire`")
    data = storage.read_bytes(url)
    if url.endswith(".parquet"):
        try:
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
        except pa.ArrowInvalid as fault:
            raise BadInput(f"{url!r} is not a Parquet file: {fault}") from fault
    else:
        text = data.decode("utf-8-sig", errors="replace")  # spreadsheets begin files with a byte order mark
        if url.endswith(".txt"):
            rows = [{"uri": path} for path in read_list(text)]
        else:
            rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]
    if rows and "uri" not in rows[0]:
        raise BadInput(f"{url!r} has no column `uri`; its columns are {', '.join(map(str, rows[0]))}")
    folder = url.rpartition("/")[0]
    return [_source(row, folder, f"{url!r}, row {number}") for number, row in enumerate(rows, start=1)]


def _source(row: dict[str, Any], folder: str, where: str) -> Source:
    given = {k: row[k] for k in SCHEMA.names if row.get(k) is not None}
    try:
        kinds = {"bytes": int, "duration_s": float}
        typed = {k: kinds[k](v) if k in kinds else v for k, v in given.items()}
        uri = given["uri"]
        placed = uri if "://" in uri or uri.startswith(("/", "~/")) else storage.join(folder, uri)
        return Source(**{"source_id": uri, **typed, "uri": placed})
    except (KeyError, ValueError) as fault:
        raise BadInput(
            f"{where}: a video needs a `uri`, `bytes` is a whole number and `duration_s` a number; got {given}"
        ) from fault
