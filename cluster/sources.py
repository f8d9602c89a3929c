"""The sources manifest: one row a video, whatever it came from."""

from __future__ import annotations

import csv
import fnmatch
import io
import itertools
import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.rows import Rows
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
MEANT = ("source_id", "uri", "page")  # by which a name may mean a source
CREDITS = ("license", "license_url", "author", "page", "tags")
BLOCK = 65536  # sources that are objects while a manifest is written


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


class Sources(Rows[Source]):
    """Sources as a table of SCHEMA: 2 million take some 300 MB, a tenth of what their objects would."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Sources:
        """The same sources as columns."""
        if isinstance(sources, Sources):
            return sources
        rest, blocks = iter(sources), [SCHEMA.empty_table()]
        while rows := [vars(source) for source in itertools.islice(rest, BLOCK)]:
            blocks.append(pa.Table.from_pylist(rows, SCHEMA))
        return cls(pa.concat_tables(blocks))

    def __len__(self) -> int:
        return self.table.num_rows

    def block(self, start: int, end: int) -> list[Source]:
        return [Source(**row) for row in self.table.slice(start, end - start).to_pylist()]

    @property
    def credited(self) -> bool:
        """Whether any tells whose it is."""
        return any(pc.any(pc.not_equal(self.table[name], "")).as_py() for name in CREDITS)

    def split_by(self, names: Collection[str]) -> tuple[Sources, Sources]:
        """Those that none of `names` (ids, uris or pages) means, and those that one does."""
        mask = meant_by(names, self.table)
        return Sources(self.table.filter(pc.invert(mask))), Sources(self.table.filter(mask))


def meant_by(names: Collection[str], columns: Mapping[str, Any] | pa.Table) -> Any:
    """Whether one of `names` (ids, uris or pages) means the source of each row, of the columns of SCHEMA."""
    wanted = pa.array(sorted(names), pa.string())
    source_id, uri, page = (pc.is_in(columns[name], value_set=wanted) for name in MEANT)
    return pc.or_(pc.or_(source_id, uri), page)


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


def read_sources(url: str) -> Sources:
    """Sources named by a manifest (.parquet), a list (.txt, .csv with a `uri` column), a folder or a glob.

    Relative paths in a list are meant from the list's own folder, as in the original's lists.

    Raises:
        BadInput: nothing there, no video in it, or a file that does not hold what its name says.
    """
    if "*" in url:
        sources = Sources.of(list_glob(url)[0])
    elif url.endswith((".parquet", ".txt", ".csv")):
        sources = read_manifest_rows(url)
    else:
        sources = Sources.of(list_folder(url)[0])
    if not sources:
        raise BadInput(f"no video in {url!r}: known kinds are {VIDEO_KINDS}")
    if twice := _repeated(sources.table["source_id"]):
        raise BadInput(f"{twice} source_id values in {url!r} occur more than once: they name videos and must be unique")
    uris = sources.table["uri"]
    protocols = pc.struct_field(pc.extract_regex(uris, "^(?P<protocol>.*?)://"), "protocol")
    for protocol in pc.unique(protocols.drop_null()):
        storage.filesystem(uris[pc.index(protocols, protocol).as_py()].as_py())  # one that no worker speaks is told now
    return sources


def _repeated(names: pa.ChunkedArray) -> int:
    """How many of the names have occurred before."""
    blocks = (names.slice(start, BLOCK).to_pylist() for start in range(0, len(names), BLOCK))
    hashes = np.fromiter(map(hash, itertools.chain.from_iterable(blocks)), np.int64, len(names))
    if len(np.unique(hashes)) == len(names):  # Arrow's table of millions of strings takes half a gigabyte
        return 0
    return len(names) - int(pc.count_distinct(names).as_py())


def write_sources(sources: Iterable[Source], url: str) -> None:
    """Write the manifest as Parquet, at once."""
    buffer = io.BytesIO()
    pq.write_table(Sources.of(sources).table, buffer, row_group_size=BLOCK)
    storage.write_bytes(url, buffer.getvalue())


def read_manifest_rows(url: str) -> Sources:
    """Every row of a manifest or list, in its order, names that occur twice included.

    Raises:
        BadInput: as `read_sources`, but for names that occur more than once.
    """
    if not storage.exists(url):
        raise BadInput(f"no sources manifest at {url!r}: make one with `python -m jobs.acquire`")
    data, folder = storage.read_bytes(url), url.rpartition("/")[0]
    if url.endswith(".parquet"):
        return _from_parquet(data, folder, url)
    text = data.decode("utf-8-sig", errors="replace")  # spreadsheets begin files with a byte order mark
    if url.endswith(".txt"):
        rows: list[dict[str, Any]] = [{"uri": path} for path in read_list(text)]
    else:
        rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]
    if rows:
        _require_uri(list(rows[0]), url)
    return Sources.of(_source(row, folder, f"{url!r}, row {number}") for number, row in enumerate(rows, start=1))


def _require_uri(columns: list[str], url: str) -> None:
    if "uri" not in columns:
        raise BadInput(f"{url!r} has no column `uri`; its columns are {', '.join(map(str, columns))}")


def _from_parquet(data: bytes, folder: str, url: str) -> Sources:
    """A manifest's known columns with their types, what is missing filled in as `_source` does."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as fault:
        raise BadInput(f"{url!r} is not a Parquet file: {fault}") from fault
    _require_uri(file.schema_arrow.names, url)
    found = file.read(columns=_filled(file))
    there = {}
    for name in found.column_names:
        kind = SCHEMA.field(name).type
        try:
            there[name] = found[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as fault:
            raise BadInput(f"{url!r}: column `{name}` must be {kind}, got {found[name].type}: {fault}") from fault
    uris = there["uri"]
    if uris.null_count:
        raise BadInput(f"{url!r}, row {pc.index(uris.is_null(), True).as_py() + 1}: a video needs a `uri`")
    there["source_id"] = pc.coalesce(there["source_id"], uris) if "source_id" in there else uris
    placed = pc.match_substring_regex(uris, "://|^/|^~/")
    if not pc.all(placed).as_py():  # what is done for nothing would take memory
        there["uri"] = pc.if_else(placed, uris, pc.binary_join_element_wise(folder.rstrip("/"), uris, "/"))
    nothing = {kind: pa.nulls(found.num_rows, kind) for kind in set(SCHEMA.types)}  # shared, for each takes memory
    return Sources(pa.table({field.name: there.get(field.name, nothing[field.type]) for field in SCHEMA}, SCHEMA))


def _filled(file: pq.ParquetFile) -> list[str]:
    """The columns of SCHEMA that have to be read: of others the file tells that there is no value in any row."""
    empty: dict[str, list[bool]] = {"uri": [False]}
    for group in map(file.metadata.row_group, range(file.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            told = column.statistics
            empty.setdefault(column.path_in_schema, []).append(told is not None and told.num_values == 0)
    return [name for name in file.schema_arrow.names if name in SCHEMA.names and not all(empty.get(name, [False]))]


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
