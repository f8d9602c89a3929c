"""Storage layer: files addressed by URL through fsspec (file, s3, gs, http, memory).

The endpoint and the credentials of an S3 store come from the environment, never from a URL. s3fs and botocore read
them when a process first uses the store; Ray workers inherit the environment of `ray start` (or of a job without a
cluster):

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY      or a profile, or the machine's role
    AWS_ENDPOINT_URL=http://host:9000             any store except Amazon's (AWS_ENDPOINT_URL_S3: S3 only)
    AWS_MAX_ATTEMPTS=5                            attempts per request inside botocore, with growing pauses
    AWS_RESPONSE_CHECKSUM_VALIDATION=when_required  for stores that send the full file's checksum with a range
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiohttp
import botocore.exceptions as boto
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.parsers import ResponseParserError
from fsspec.core import url_to_fs
from pyarrow.fs import FSSpecHandler, PyFileSystem

from vgan.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

# botocore tries a request 5 times in about 8 s, and s3fs repeats some failures 5 times more. An operation that fails in
# spite of both is attempted 4 times in all, with pauses of 1, 2 and 4 s, which bridges an outage of half a minute.
ATTEMPTS, BACKOFF_S = 4, 1.0
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})  # buckets without real folders
FAULTS = (OSError, ValueError, boto.BotoCoreError, ResponseParserError, aiohttp.ClientError)  # raised by stores
CONNECTION_FAULTS = (
    ConnectionError,
    TimeoutError,
    boto.ConnectionError,
    boto.HTTPClientError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
)
PASSING_CODES = frozenset(  # S3 error codes of transient failures, whatever their HTTP status
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"}
    | {"OperationAborted", "ConditionalRequestConflict"}  # a concurrent writer of the same name
    | {"NoSuchUpload"}  # a multipart upload was completed, and its response lost
)
PASSING_ERRNOS = frozenset({errno.EBUSY, errno.ESTALE, errno.EAGAIN})  # network mounts
FULL_CODES = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "ServiceQuotaExceededException"})
KEY_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
VERSION_KEYS = ("generation", "ETag", "md5Hash", "Content-MD5", "etag")  # tags of the content; gs first
TIME_KEYS = ("LastModified", "Last-Modified", "updated", "last_modified", "mtime", "modified", "created")

log = logging.getLogger(__name__)


# ---- urls --------------------------------------------------------------------------------------------------------


def absolute(url: str) -> str:
    """Return a URL unchanged and a local path made absolute: workers run in other folders than the driver.

    Raises:
        InputError: The path is relative and this is a submitted job, which runs in a copy of the code that Ray deletes.
    """
    if "://" in url:
        return url
    path = Path(url).expanduser() if url.startswith("~/") else Path(url)
    if not path.is_absolute() and in_submitted_job():
        raise InputError(
            f"{url!r} is relative, and the working folder of a submitted job is deleted: give an absolute path or a url"
        )
    return str(path.absolute())


def in_submitted_job() -> bool:
    """Return True if this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def redact(text: str) -> str:
    """Remove user name and password from the URLs in a text, for logs and records.

    A password may contain slashes, as S3 keys do, unless the first slash follows the digits of a port.
    """
    return re.sub(r"(?<=://)(?:[^/@\s]+|[^/@:\s]+:(?!\d+/)[^@\s]+)@", "***@", text)


def join(url: str, *parts: str) -> str:
    """Join a URL and the path components below it."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Resolve a URL to its fsspec file system and the path inside it.

    Raises:
        InputError: No installed package supports the protocol.
    """
    if "://" not in url:  # fsspec would read "::" in a file name as a chain of file systems
        return fsspec.filesystem("file"), absolute(url)
    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot use the url {redact(url)!r}: {redact(str(error))}") from error


def arrow_filesystem(url: str) -> tuple[PyFileSystem, str]:
    """Resolve a URL to its pyarrow file system, as pyarrow and Ray expect it, and the path inside it."""
    fs, path = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), path


# ---- errors ------------------------------------------------------------------------------------------------------


def faults() -> tuple[type[Exception], ...]:
    """Return the exception types that stores raise, including those of gcsfs once it is imported."""
    google = sys.modules.get("gcsfs.retry")
    if not hasattr(google, "validate_response"):  # not imported, or still being imported by another thread
        return FAULTS
    return (*FAULTS, google.HttpError, google.google.auth.exceptions.GoogleAuthError)  # type: ignore[union-attr]


def may_pass(fault: BaseException) -> bool:
    """Return True for a transient error of a store: broken connection, time-out, server error."""
    status, code = _response_status(fault)
    if status is not None:
        return code in PASSING_CODES or status in (408, 429) or (status >= 500 and status not in (501, 507))
    return isinstance(fault, (*CONNECTION_FAULTS, ResponseParserError)) or getattr(fault, "errno", 0) in PASSING_ERRNOS


def explained(fault: BaseException, url: str) -> InputError | None:
    """Translate an error of a store into one the user can fix, in one line without secrets.

    Args:
        fault: The exception that the store raised.
        url: The URL of the failed operation.

    Returns:
        The error to raise; None if the user cannot fix the cause.
    """
    name, (status, code) = repr(redact(url)), _response_status(fault)
    number = fault.errno if isinstance(fault, OSError) and status is None else None  # s3fs invents errno values
    if number in (errno.ENOSPC, errno.EDQUOT) or code in FULL_CODES or status == 507:
        return InputError(f"no space left to write {name}: free some space and run the same command again")
    if number == errno.EROFS:
        return InputError(
            f"cannot write {name}, its file system is read-only: choose another folder or mount it writable"
        )
    if code in KEY_CODES or isinstance(
        fault, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound
    ):
        return InputError(
            f"the store refuses the credentials for {name} ({code or type(fault).__name__}): "
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role"
        )
    if isinstance(fault, PermissionError) or status in (401, 403):
        reason = code or status or getattr(fault, "strerror", None) or "refused"
        fix = "choose another folder" if _is_local(url) else "correct the credentials"
        return InputError(f"no permission for {name} ({reason}): {fix}, or request access to it")
    if code == "NoSuchBucket":
        return InputError(f"no bucket for {name}: create it, or correct the name or AWS_ENDPOINT_URL")
    if isinstance(fault, boto.FlexibleChecksumError):
        return InputError(
            f"wrong checksum in a response of the store of {name}: if it sends the checksum of the full file with a "
            "range of it, set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if isinstance(fault, CONNECTION_FAULTS):
        reason = redact(_first_line(fault))
        return InputError(
            f"cannot reach the store of {name} ({reason}): check AWS_ENDPOINT_URL or the host, and the network"
        )
    if isinstance(fault, ValueError) and "Invalid endpoint" in str(fault):
        return InputError(f"cannot use {name}: AWS_ENDPOINT_URL must have the form http://host:port")
    if status is not None and status >= 500:  # rclone answers 500 when its disk is full
        return InputError(
            f"the store of {name} keeps answering {status} ({code or 'no reason given'}): "
            "check whether its disk is full or it is overloaded, and run the same command again"
        )
    return None


def _response_status(error: BaseException) -> tuple[int | None, str]:
    """Return HTTP status and S3 error code of a store's response; (None, "") if there was no response."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status, ""
    if "gcsfs.retry" in sys.modules and (status := _google_status(error)):
        return status, ""
    for cause in (error, error.__cause__):  # s3fs turns S3's responses into OSError
        if isinstance(cause, boto.ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
            return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), code
    return None, ""


def _google_status(error: BaseException) -> int | None:
    """Return the HTTP status of a gcsfs error; 401 if no credentials were found, None if there is no status."""
    google = sys.modules["gcsfs.retry"]
    if isinstance(error, google.HttpError):
        return int(error.code) if error.code else None
    if isinstance(error, google.google.auth.exceptions.GoogleAuthError):
        return 401
    return 403 if isinstance(error, OSError) and str(error).startswith("Forbidden: ") else None


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none; at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _with_retries(operation: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Retry an idempotent operation on a URL after transient errors.

    The operation also raises InputError, for errors that the user can fix.
    """

    @functools.wraps(operation)
    def retrying(url: str, *args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return operation(url, *args, **kwargs)
            except faults() as error:
                if attempt == ATTEMPTS or not may_pass(error):
                    user_error = explained(error, url)
                    if user_error is None:
                        raise
                    raise user_error from error
                details = (operation.__name__.strip("_"), redact(url), redact(_first_line(error)), attempt, ATTEMPTS)
                log.warning("%s of %s failed (%s), attempt %d of %d", *details)
                # Jitter: many workers share a store. SystemRandom leaves the seeded generators untouched.
                jitter = random.SystemRandom().uniform(0.5, 1.5)
                time.sleep(jitter * BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    return retrying


# ---- files -------------------------------------------------------------------------------------------------------


def make_folder(url: str) -> None:
    """Create an output folder and check that it is usable, instead of failing hours later. Never creates a bucket.

    Raises:
        InputError: The folder cannot be created, or files in it cannot be written, read or removed.
    """
    probe = join(url, f".writable-{uuid.uuid4().hex}")
    try:
        fs, path = _uncached_filesystem(probe)
        _make_parent(fs, path)
        fs.pipe_file(path, os.urandom(65536))  # an empty file fits on a full disk
        fs.cat_file(path)
        fs.rm_file(path)
    except faults() as error:
        user_error = explained(error, url)
        raise user_error or InputError(f"cannot write to {redact(url)!r}: {redact(_first_line(error))}") from error
    finally:
        if _is_local(url):
            with suppress(OSError):  # a file that did not fit on the disk still has its name
                os.unlink(filesystem(probe)[1])


def free_bytes(url: str) -> float:
    """Return the free space in bytes of the file system of an existing local folder; infinity for other stores."""
    return shutil.disk_usage(filesystem(url)[1]).free if _is_local(url) else math.inf


@_with_retries
def exists(url: str) -> bool:
    """Return True if there is a file or folder at a URL."""
    fs, path = _uncached_filesystem(url)
    return fs.exists(path)


def list_files(url: str, suffix: str = "") -> list[str]:
    """List the URLs of the files directly inside a folder, sorted; empty if the folder is missing."""
    return [join(url, name) for name in list_names(url, suffix)]


@_with_retries
def list_names(url: str, suffix: str = "") -> list[str]:
    """List the names of the files directly inside a folder, sorted; empty if the folder is missing.

    A local folder of millions of files is read by its directory entries: fsspec would query and keep each file's size.
    """
    fs, path = _uncached_filesystem(url)
    if not fs.isdir(path):
        return []
    if _is_local(url):
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
    names = [info["name"] for info in fs.ls(path, detail=True) if info["type"] == "file"]
    # Some tools represent a folder of an object store by an object whose name ends in a slash.
    return sorted(os.path.basename(n) for n in names if n.endswith(suffix) and not n.endswith("/"))


@_with_retries
def remove_files(url: str, names: list[str]) -> None:
    """Remove files directly inside a folder, with bulk requests if the store has them; missing files are ignored."""
    fs, path = _uncached_filesystem(url)
    if not _is_local(url):
        with suppress(FileNotFoundError):
            fs.rm([join(path, name) for name in names])
        fs.invalidate_cache()
        existing = {os.path.basename(info["name"]) for info in fs.ls(path, detail=True)} if fs.isdir(path) else set()
        if remaining := existing & set(names):  # s3fs does not report single objects that a bulk removal missed
            raise OSError(
                errno.EBUSY, f"{len(remaining)} files still exist after removal, {min(remaining)} first", redact(url)
            )
        return
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(join(path, name))


@_with_retries
def find(url: str) -> dict[str, dict[str, Any]] | None:
    """Map the path (inside the store) of every file below a folder to its fsspec info; None if there is no folder."""
    fs, path = _uncached_filesystem(url)
    return fs.find(path, detail=True) if fs.isdir(path) else None


@_with_retries
def read_bytes(url: str) -> bytes:
    """Read a file."""
    fs, path = _uncached_filesystem(url)
    return fs.cat_file(path)


@_with_retries
def read_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Read byte ranges (start, end), end excluded, of one file, concurrently if the store supports it.

    Raises:
        OSError: A range exceeds the file, or the store does not serve ranges.
    """
    fs, path = _uncached_filesystem(url)
    nonempty = [(start, end) for start, end in ranges if end > start]
    starts, ends = [start for start, _ in nonempty], [end for _, end in nonempty]
    parts = iter(fs.cat_ranges([path] * len(nonempty), starts, ends, on_error="raise") if nonempty else [])
    chunks = [next(parts) if end > start else b"" for start, end in ranges]
    for (start, end), chunk in zip(ranges, chunks, strict=True):
        if len(chunk) != end - start:
            raise OSError(f"{redact(url)}: requested bytes {start} to {end}, got {len(chunk)}")
    return chunks


@_with_retries
def read_row_group(url: str, group: int, columns: list[str]) -> pa.Table:
    """Read columns of one row group of a Parquet file; a local file is memory-mapped, which is twice as fast.

    A mapped file that shrinks while it is read ends the process; files of a dataset are never written in place.
    """
    fs, path = filesystem(url)
    with pa.memory_map(path) if _is_local(url) else fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(group, columns=columns)


def read_columns(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file that fits in memory: all columns, or those of `columns` that it has."""
    return pq.ParquetFile(pa.BufferReader(read_bytes(url))).read(columns=columns)


@_with_retries
def write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    if not _is_local(url):
        fs.pipe_file(path, data)  # object stores publish an object when it is complete
        return
    with _temporary_path(path) as temporary:
        fs.pipe_file(temporary, data)
        os.replace(temporary, path)


@_with_retries
def put_file(url: str, local: Path) -> None:
    """Copy a local file to a URL atomically, large ones as multipart uploads."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    if not _is_local(url):
        fs.put_file(str(local), path)
        return
    with _temporary_path(path) as temporary:
        fs.put_file(str(local), temporary)
        os.replace(temporary, path)


@_with_retries
def get_file(url: str, local: Path) -> None:
    """Copy the file at a URL to a local path, creating its folder."""
    fs, path = _uncached_filesystem(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(path, str(local))


def write_new(url: str, data: bytes) -> bool:
    """Write a file atomically unless it exists.

    An existing file is another writer's, or the result of this call if the store completed the write and its response
    was lost. Callers must not depend on which: writers of one name write equal content, or read the file afterward.

    A store without put-if-absent (see `honours_create`) lets a writer that starts between this function's check and its
    write replace the file: both calls then return True, and the later content remains.

    Returns:
        True if the file was written, False if it existed and was left unchanged.
    """
    if not _is_local(url) and exists(url):
        return False
    return _create_file(url, data)


def honours_create(url: str) -> bool:
    """Return True if the store of a folder supports put-if-absent: never writes one name twice, even concurrently.

    Tests it with files that are removed again: some stores (rclone) ignore S3's `If-None-Match: *`, and some local
    file systems have no hard links.
    """
    probe = join(url, f".create-{uuid.uuid4().hex}")
    try:
        _create_file(probe, b"first")  # result unused: after a lost response, the second attempt returns False
        return not _create_file(probe, b"second") and (not _is_local(url) or _has_hard_links(filesystem(probe)[1]))
    finally:
        remove(probe)


@_with_retries
def _create_file(url: str, data: bytes) -> bool:
    """Write a file with the store's own put-if-absent; False if the file exists."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    try:
        if not _is_local(url):
            fs.pipe_file(path, data, mode="create")
            return True
        with _temporary_path(path) as temporary:
            fs.pipe_file(temporary, data)
            _rename_if_absent(temporary, path)
    except FileExistsError:
        return False
    return True


def _rename_if_absent(temporary: str, path: str) -> None:
    """Publish a complete file under its final name by a hard link; without hard links, by a check and a rename.

    Raises:
        FileExistsError: The name exists.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(path):  # exFAT and some network mounts cannot check and write in one step
            raise FileExistsError(path) from error
        os.replace(temporary, path)


def _has_hard_links(path: str) -> bool:
    """Return True if the file system of a file supports hard links."""
    link = f"{path}.link"
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return False
    os.unlink(link)
    return True


@_with_retries
def remove(url: str) -> None:
    """Remove a file or a folder with its content, if it exists."""
    fs, path = _uncached_filesystem(url)
    if not fs.exists(path):
        return
    with suppress(FileNotFoundError):  # removed by another process, or by an attempt whose response was lost
        fs.rm(path, recursive=True)
    fs.invalidate_cache()
    if fs.exists(path):  # s3fs does not report single objects that a bulk removal missed
        raise OSError(errno.EBUSY, "still exists after removal", redact(url))


def listing_version(info: dict[str, Any]) -> str | None:
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


def _is_local(url: str) -> bool:
    """Return True for a path or URL of the local file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def _uncached_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Resolve a URL like `filesystem` and clear its cache of listings: other processes write too."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs, path


def _make_parent(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Create the folder of a file, except in object stores: they need none, and `makedirs` might create a bucket."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & OBJECT_STORES:
        fs.makedirs(os.path.dirname(path), exist_ok=True)


@contextmanager
def _temporary_path(path: str) -> Iterator[str]:
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
