"""Read, write, list and remove files by url."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.errors import retryable_exceptions, user_error_for
from cluster.storage.retry import with_retries
from cluster.storage.urls import OBJECT_STORES, filesystem, is_local_url, join_url, redact, uncached_filesystem
from vgan.errors import InputError, first_line

VERSION_KEYS = ("generation", "ETag", "md5Hash", "Content-MD5", "etag")  # tags of the content; gs first
TIME_KEYS = ("LastModified", "Last-Modified", "updated", "last_modified", "mtime", "modified", "created")


def make_writable_folder(url: str) -> None:
    """Create an output folder and check that it is usable, instead of failing hours later. Never creates a bucket.

    Raises:
        InputError: The folder cannot be created, or files in it cannot be written, read or removed.
    """
    probe = join_url(url, f".writable-{uuid.uuid4().hex}")
    try:
        fs, path = uncached_filesystem(probe)
        make_parent(fs, path)
        fs.pipe_file(path, os.urandom(65536))  # an empty file fits on a full disk
        fs.cat_file(path)
        fs.rm_file(path)
    except retryable_exceptions() as error:
        user_error = user_error_for(error, url)
        raise user_error or InputError(f"cannot write to {redact(url)!r}: {redact(first_line(error))}") from error
    finally:
        if is_local_url(url):
            with suppress(OSError):  # a file that did not fit on the disk still has its name
                os.unlink(filesystem(probe)[1])


def free_disk_bytes(url: str) -> float:
    """Return the free space in bytes of the file system of an existing local folder; infinity for other stores."""
    return shutil.disk_usage(filesystem(url)[1]).free if is_local_url(url) else math.inf


@with_retries
def exists(url: str) -> bool:
    """Return True if there is a file or folder at a URL."""
    fs, path = uncached_filesystem(url)
    return fs.exists(path)


def list_files(url: str, suffix: str = "") -> list[str]:
    """List the URLs of the files directly inside a folder, sorted; empty if the folder is missing."""
    return [join_url(url, name) for name in list_names(url, suffix)]


@with_retries
def list_names(url: str, suffix: str = "") -> list[str]:
    """List the names of the files directly inside a folder, sorted; empty if the folder is missing.

    A local folder of millions of files is read by its directory entries: fsspec would query and keep each file's size.
    """
    fs, path = uncached_filesystem(url)
    if not fs.isdir(path):
        return []
    if is_local_url(url):
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
    names = [info["name"] for info in fs.ls(path, detail=True) if info["type"] == "file"]
    # Some tools represent a folder of an object store by an object whose name ends in a slash.
    return sorted(os.path.basename(n) for n in names if n.endswith(suffix) and not n.endswith("/"))


@with_retries
def remove_files(url: str, names: list[str]) -> None:
    """Remove files directly inside a folder, with bulk requests if the store has them; missing files are ignored."""
    fs, path = uncached_filesystem(url)
    if not is_local_url(url):
        with suppress(FileNotFoundError):
            fs.rm([join_url(path, name) for name in names])
        fs.invalidate_cache()
        existing = {os.path.basename(info["name"]) for info in fs.ls(path, detail=True)} if fs.isdir(path) else set()
        if remaining := existing & set(names):  # s3fs does not report single objects that a bulk removal missed
            raise OSError(
                errno.EBUSY, f"{len(remaining)} files still exist after removal, {min(remaining)} first", redact(url)
            )
        return
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(join_url(path, name))


@with_retries
def find_files(url: str) -> dict[str, dict[str, Any]] | None:
    """Map the path (inside the store) of every file below a folder to its fsspec info; None if there is no folder.

    The info of a symbolic link is that of its target, as it is when the file is read.
    """
    fs, path = uncached_filesystem(url)
    if not fs.isdir(path):
        return None
    files = fs.find(path, detail=True)
    return {name: fs.info(name) if info.get("islink") else info for name, info in files.items()}


@with_retries
def read_bytes(url: str) -> bytes:
    """Read a file."""
    fs, path = uncached_filesystem(url)
    return fs.cat_file(path)


@with_retries
def read_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Read byte ranges (start, end), end excluded, of one file, concurrently if the store supports it.

    Raises:
        OSError: A range exceeds the file, or the store does not serve ranges.
    """
    fs, path = uncached_filesystem(url)
    nonempty = [(start, end) for start, end in ranges if end > start]
    starts, ends = [start for start, _ in nonempty], [end for _, end in nonempty]
    parts = iter(fs.cat_ranges([path] * len(nonempty), starts, ends, on_error="raise") if nonempty else [])
    chunks = [next(parts) if end > start else b"" for start, end in ranges]
    for (start, end), chunk in zip(ranges, chunks, strict=True):
        if len(chunk) != end - start:
            raise OSError(f"{redact(url)}: requested bytes {start} to {end}, got {len(chunk)}")
    return chunks


@with_retries
def read_row_group(url: str, group: int, columns: list[str]) -> pa.Table:
    """Read columns of one row group of a Parquet file; a local file is memory-mapped, which is twice as fast.

    A mapped file that shrinks while it is read ends the process; files of a dataset are never written in place.
    """
    fs, path = filesystem(url)
    with pa.memory_map(path) if is_local_url(url) else fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(group, columns=columns)


def read_columns(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file that fits in memory: all columns, or those of `columns` that it has."""
    return pq.ParquetFile(pa.BufferReader(read_bytes(url))).read(columns=columns)


@with_retries
def write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    make_parent(fs, path)
    if not is_local_url(url):
        fs.pipe_file(path, data)  # object stores publish an object when it is complete
        return
    with temporary_path(path) as temporary:
        fs.pipe_file(temporary, data)
        os.replace(temporary, path)


@with_retries
def put_file(url: str, local: Path) -> None:
    """Copy a local file to a URL atomically, large ones as multipart uploads."""
    fs, path = filesystem(url)
    make_parent(fs, path)
    if not is_local_url(url):
        fs.put_file(str(local), path)
        return
    with temporary_path(path) as temporary:
        fs.put_file(str(local), temporary)
        os.replace(temporary, path)


@with_retries
def get_file(url: str, local: Path) -> None:
    """Copy the file at a URL to a local path, creating its folder."""
    fs, path = uncached_filesystem(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(path, str(local))


@with_retries
def remove_tree(url: str) -> None:
    """Remove a file or a folder with its content, if it exists."""
    fs, path = uncached_filesystem(url)
    if not fs.exists(path):
        return
    with suppress(FileNotFoundError):  # removed by another process, or by an attempt whose response was lost
        fs.rm(path, recursive=True)
    fs.invalidate_cache()
    if fs.exists(path):  # s3fs does not report single objects that a bulk removal missed
        raise OSError(errno.EBUSY, "still exists after removal", redact(url))


def version_tag(info: dict[str, Any]) -> str | None:
    """Return the version tag of an fsspec info: a tag of the file's content, else its modification time.

    It changes when a file changes under the same name, and is the same from a folder listing and a single query.
    None if the store reports neither, as many HTTP servers.
    """
    for key in VERSION_KEYS:
        if info.get(key):
            return f"{key.lower()}:{str(info[key]).removeprefix('W/').strip(chr(34))}"  # unquoted in rclone's listings
    for key in TIME_KEYS:
        if info.get(key):
            value = info[key].timestamp() if isinstance(info[key], datetime) else info[key]
            return f"modified:{int(value) if key == 'LastModified' else value}"  # S3: fractions in listings only
    return None


def make_parent(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Create the folder of a file, except in object stores: they need none, and `makedirs` might create a bucket."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & OBJECT_STORES:
        fs.makedirs(os.path.dirname(path), exist_ok=True)


@contextmanager
def temporary_path(path: str) -> Iterator[str]:
    """Yield the path of a temporary file beside `path`, and remove it at the end of the block."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"  # no process id: threads share it, and so do containers
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def read_lines(url: str) -> list[str]:
    """Read the stripped lines of a text file, without the byte order mark that spreadsheet programs write.

    Raises:
        InputError: The file is missing.
    """
    if not exists(url):
        raise InputError(f"no list at {url!r}")
    return [line.strip() for line in read_bytes(url).decode("utf-8-sig", errors="replace").splitlines()]


def read_json(url: str) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    """Write a JSON file atomically, in canonical form."""
    write_bytes(url, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Serialize a value to canonical JSON in UTF-8: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
