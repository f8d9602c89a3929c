"""Sources manifest: a table of the videos to prepare, one row per video, from folders, lists or catalogs."""

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

from cluster.sources.lazy_rows import LazyRows
from cluster.storage.files import exists, find_files, read_bytes, version_tag, write_bytes
from cluster.storage.urls import filesystem, join_url
from vgan.errors import InputError
from vgan.video.image_strips import read_list

VIDEO_KINDS = "3g2 3gp asf avi divx dv f4v flv gif h264 hevc m2ts m2v m4v mkv mov mp4 mpe mpeg mpg mts mxf"
VIDEO_KINDS += " ogm ogv rm ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{extension}" for extension in VIDEO_KINDS.split())
STRIP_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))  # clips stored as image strips; listed only on explicit request
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # URL of the video file
        pa.field("source_id", pa.string(), nullable=False),  # stable name inside the corpus
        pa.field("bytes", pa.int64()),  # size when listed; a file of another size under the same name is a new source
        pa.field("version", pa.string()),  # ETag or modification time when listed, which detects changes in place
        pa.field("duration_s", pa.float64()),  # if known, the total of the progress bar is exact from the start
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),  # train or test
        # Attribution and license, if the origin provides them; stored with every clip (shards.clip_schema).
        pa.field("license", pa.string()),  # name of the license at the origin
        pa.field("license_url", pa.string()),
        pa.field("author", pa.string()),
        pa.field("page", pa.string()),  # URL of the web page that shows the video
        pa.field("tags", pa.string()),  # separated by commas
    ]
)
NAME_COLUMNS = ("source_id", "uri", "page")  # columns by which deletion lists may identify a source
ATTRIBUTION_COLUMNS = ("license", "license_url", "author", "page", "tags")
BLOCK = 65536  # rows that are converted from or to Python objects at a time


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video to prepare; fields as in SCHEMA."""

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
        """Attribution and license: the columns in CREDITS."""
        return {name: getattr(self, name) for name in ATTRIBUTION_COLUMNS}

    @property
    def names(self) -> set[str]:
        """Names by which a deletion list may identify the source."""
        return {name for name in (self.source_id, self.uri, self.page) if name}


class Sources(LazyRows[Source]):
    """Sequence of sources stored as a table of SCHEMA.

    2 million sources take about 300 MB, a tenth of the size of their objects.

    Args:
        table: Table of SCHEMA.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Sources:
        """Convert sources to a table, in blocks of BLOCK rows; `Sources` are returned unchanged."""
        if isinstance(sources, Sources):
            return sources
        iterator, blocks = iter(sources), [SCHEMA.empty_table()]
        while rows := [vars(source) for source in itertools.islice(iterator, BLOCK)]:
            blocks.append(pa.Table.from_pylist(rows, SCHEMA))
        return cls(pa.concat_tables(blocks))

    def __len__(self) -> int:
        return self.table.num_rows

    def block(self, start: int, end: int) -> list[Source]:
        """Create the sources of rows start..end, end excluded."""
        return [Source(**row) for row in self.table.slice(start, end - start).to_pylist()]

    @property
    def has_attribution(self) -> bool:
        """True if any source has a value in one of the columns in CREDITS."""
        return any(pc.any(pc.not_equal(self.table[name], "")).as_py() for name in ATTRIBUTION_COLUMNS)

    def partition_by_name(self, names: Collection[str]) -> tuple[Sources, Sources]:
        """Split into sources that no name (source_id, URI or page) in `names` matches, and sources that one matches."""
        mask = matches_any_name(names, self.table)
        return Sources(self.table.filter(pc.invert(mask))), Sources(self.table.filter(mask))


def matches_any_name(names: Collection[str], columns: Mapping[str, Any] | pa.Table) -> Any:
    """Return a boolean Arrow array, one value per row: True if a name matches the row's source_id, URI or page.

    Args:
        names: Source ids, URIs and pages.
        columns: Columns of SCHEMA, those in MEANT at least.
    """
    value_set = pa.array(sorted(names), pa.string())
    source_id, uri, page = (pc.is_in(columns[name], value_set=value_set) for name in NAME_COLUMNS)
    return pc.or_(pc.or_(source_id, uri), page)


def list_folder(url: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> tuple[list[Source], int]:
    """List the videos below a folder.

    Args:
        url: URL of the folder.
        suffixes: Suffixes of video files, in lower case.

    Returns:
        Sources sorted by name, and the number of skipped files: those with another suffix, and those whose name is not
        UTF-8, which a manifest cannot hold.

    Raises:
        InputError: There is no such folder.
    """
    files = find_files(url)
    if files is None:
        raise InputError(f"no folder at {url!r}: give an existing folder of videos")
    _, root = filesystem(url)
    sources = []
    for path in sorted(files):
        name = posixpath.relpath(path, root)
        if posixpath.splitext(path)[1].lower() in suffixes and _is_utf8(name):
            info = files[path]
            version = version_tag(info)
            sources.append(Source(uri=join_url(url, name), source_id=name, bytes=info["size"], version=version))
    return sources, len(files) - len(sources)


def list_glob(url: str) -> tuple[list[Source], int]:
    """List the videos whose path matches a glob, in which a star matches slashes too, like `list_folder`.

    Names are relative to the last folder before the first star. A glob that ends in .jpg, .jpeg or .png lists image
    strips instead of videos.
    """
    folder, _, _ = url.partition("*")[0].rpartition("/")
    pattern = url[len(folder) :].lstrip("/")
    is_strips = posixpath.splitext(pattern)[1].lower() in STRIP_SUFFIXES
    candidates, num_skipped = list_folder(
        folder or ("/" if url.startswith("/") else "."), STRIP_SUFFIXES if is_strips else VIDEO_SUFFIXES
    )
    sources = [source for source in candidates if fnmatch.fnmatchcase(source.source_id, pattern)]
    return sources, num_skipped + len(candidates) - len(sources)


def _is_utf8(name: str) -> bool:
    """Return False for a name with surrogates, as Python gives to files whose name is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_sources(url: str) -> Sources:
    """Read or list sources: a manifest (.parquet), a list (.txt, .csv with a `uri` column), a folder or a glob.

    Relative paths in a list are relative to the list's folder, as in the lists of the original code.

    Raises:
        InputError: The URL is missing or holds no video, a file has another format than its suffix, source ids are not
            unique, or no installed package supports the protocol of a URI.
    """
    if "*" in url:
        sources = Sources.of(list_glob(url)[0])
    elif url.endswith((".parquet", ".txt", ".csv")):
        sources = read_manifest_rows(url)
    else:
        sources = Sources.of(list_folder(url)[0])
    if not sources:
        raise InputError(f"no video in {url!r}: supported suffixes are {VIDEO_KINDS}")
    if num_repeated := _count_repeated(sources.table["source_id"]):
        raise InputError(
            f"{num_repeated} source_id values in {url!r} repeat earlier ones: they identify videos and must be unique"
        )
    uris = sources.table["uri"]
    protocols = pc.struct_field(pc.extract_regex(uris, "^(?P<protocol>.*?)://"), "protocol")
    for protocol in pc.unique(protocols.drop_null()):
        filesystem(uris[pc.index(protocols, protocol).as_py()].as_py())  # fail here, not in the workers
    return sources


def _count_repeated(names: pa.ChunkedArray) -> int:
    """Count the names that repeat an earlier one."""
    blocks = (names.slice(start, BLOCK).to_pylist() for start in range(0, len(names), BLOCK))
    hashes = np.fromiter(map(hash, itertools.chain.from_iterable(blocks)), np.int64, len(names))
    if len(np.unique(hashes)) == len(names):  # Arrow's hash table of millions of strings takes 0.5 GB
        return 0
    return len(names) - int(pc.count_distinct(names).as_py())


def write_sources(sources: Iterable[Source], url: str) -> None:
    """Write a sources manifest atomically as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(Sources.of(sources).table, buffer, row_group_size=BLOCK)
    write_bytes(url, buffer.getvalue())


def read_manifest_rows(url: str) -> Sources:
    """Read all rows of a manifest or list in order, repeated source ids included.

    Raises:
        InputError: The file is missing, has another format than its suffix, has no column `uri`, or has a bad value.
    """
    if not exists(url):
        raise InputError(f"no sources manifest at {url!r}: make one with `python -m jobs.acquire`")
    data, folder = read_bytes(url), url.rpartition("/")[0]
    if url.endswith(".parquet"):
        return _from_parquet(data, folder, url)
    text = data.decode("utf-8-sig", errors="replace")  # spreadsheet programs write a byte order mark
    if url.endswith(".txt"):
        rows: list[dict[str, Any]] = [{"uri": path} for path in read_list(text)]
    else:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    if rows:
        _require_uri(list(rows[0]), url)
    return Sources.of(_source(row, folder, f"{url!r}, row {number}") for number, row in enumerate(rows, start=1))


def _require_uri(columns: list[str], url: str) -> None:
    """Raise InputError unless the columns of a list or manifest include `uri`."""
    if "uri" not in columns:
        raise InputError(f"{url!r} has no column `uri`; its columns are {', '.join(map(str, columns))}")


def _from_parquet(data: bytes, folder: str, url: str) -> Sources:
    """Read the columns of SCHEMA from a Parquet manifest and cast them; missing values are filled as in `_source`."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise InputError(f"{url!r} is not a Parquet file: {error}") from error
    _require_uri(file.schema_arrow.names, url)
    table = file.read(columns=_nonempty_columns(file))
    columns = {}
    for name in table.column_names:
        type_ = SCHEMA.field(name).type
        try:
            columns[name] = table[name].cast(type_)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{url!r}: column `{name}` must be {type_}, got {table[name].type}: {error}") from error
    uris = columns["uri"]
    if uris.null_count:
        raise InputError(f"{url!r}, row {pc.index(uris.is_null(), True).as_py() + 1}: a video needs a `uri`")
    columns["source_id"] = pc.coalesce(columns["source_id"], uris) if "source_id" in columns else uris
    is_absolute = pc.match_substring_regex(uris, "://|^/|^~/")
    if not pc.all(is_absolute).as_py():  # a join without effect would still copy the column
        columns["uri"] = pc.if_else(is_absolute, uris, pc.binary_join_element_wise(folder.rstrip("/"), uris, "/"))
    nulls = {type_: pa.nulls(table.num_rows, type_) for type_ in set(SCHEMA.types)}  # shared, to save memory
    return Sources(pa.table({field.name: columns.get(field.name, nulls[field.type]) for field in SCHEMA}, SCHEMA))


def _nonempty_columns(file: pq.ParquetFile) -> list[str]:
    """List the columns of SCHEMA in a file, except those without any value according to the file's statistics."""
    empty: dict[str, list[bool]] = {"uri": [False]}
    for group in map(file.metadata.row_group, range(file.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            statistics = column.statistics
            empty.setdefault(column.path_in_schema, []).append(statistics is not None and statistics.num_values == 0)
    return [name for name in file.schema_arrow.names if name in SCHEMA.names and not all(empty.get(name, [False]))]


def _source(row: dict[str, Any], folder: str, where: str) -> Source:
    """Convert a row of a list to a source.

    Args:
        row: Values of SCHEMA as text; a missing `source_id` is the URI as written.
        folder: Folder of the list, to which relative URIs are relative.
        where: File and row, for error messages.

    Raises:
        InputError: There is no `uri`, or a number is malformed.
    """
    values = {name: row[name] for name in SCHEMA.names if row.get(name) is not None}
    try:
        types = {"bytes": int, "duration_s": float}
        typed = {name: types[name](value) if name in types else value for name, value in values.items()}
        uri = values["uri"]
        absolute_uri = uri if "://" in uri or uri.startswith(("/", "~/")) else join_url(folder, uri)
        return Source(**{"source_id": uri, **typed, "uri": absolute_uri})
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{where}: a video needs a `uri`, `bytes` is a whole number and `duration_s` a number; got {values}"
        ) from error
