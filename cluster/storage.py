"""Files by url: the one storage layer, fsspec everywhere (file, s3, gs, http, memory).

Where an S3 store is and who may use it is said in the environment, never in a url. s3fs and botocore read it when a
process first uses the store, and Ray's workers inherit what `ray start` (or a job without a cluster) was started with:

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY      or a profile, or the machine's role
    AWS_ENDPOINT_URL=http://host:9000             any store but Amazon's (AWS_ENDPOINT_URL_S3 is for S3 alone)
    AWS_MAX_ATTEMPTS=5                            tries of one request inside botocore, with a growing pause
    AWS_RESPONSE_CHECKSUM_VALIDATION=when_required  for stores that answer a part of a file with the whole's checksum
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

from vgan.errors import BadInput

P = ParamSpec("P")
R = TypeVar("R")

# botocore tries a request 5 times in about 8 s, s3fs some faults 5 times more; what passes through both is tried again
# as a whole: 4 times, with pauses of 1, 2 and 4 s, so that a store may be away for half a minute.
ATTEMPTS, BACKOFF_S = 4, 1.0
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})  # buckets without real folders
FAULTS = (OSError, ValueError, boto.BotoCoreError, ResponseParserError, aiohttp.ClientError)  # what stores raise
CONNECTION_FAULTS = (
    ConnectionError,
    TimeoutError,
    boto.ConnectionError,
    boto.HTTPClientError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
)
PASSING_CODES = frozenset(  # S3's names of faults that another try may not meet, whatever their HTTP status
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"}
    | {"OperationAborted", "ConditionalRequestConflict"}  # another writer of the same name was there
    | {"NoSuchUpload"}  # a long upload was completed, and the answer lost
)
PASSING_ERRNOS = frozenset({errno.EBUSY, errno.ESTALE, errno.EAGAIN})  # network mounts
FULL_CODES = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "ServiceQuotaExceededException"})
KEY_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
VERSION_KEYS = ("generation", "ETag", "md5Hash", "Content-MD5", "etag")  # named after the content, gs before others
TIME_KEYS = ("LastModified", "Last-Modified", "updated", "last_modified", "mtime", "modified", "created")

log = logging.getLogger(__name__)


# ---- urls --------------------------------------------------------------------------------------------------------


def absolute(url: str) -> str:
    """A url as it is, a local path made absolute: workers run in other folders than the driver.

    Raises:
        BadInput: a relative path in a submitted job, which runs in a copy of the code that Ray deletes.
    """
    if "://" in url:
        return url
    path = Path(url).expanduser() if url.startswith("~/") else Path(url)
    if not path.is_absolute() and in_submitted_job():
        raise BadInput(f"{url!r} is relative, and a submitted job's folder is deleted: give an absolute path or a url")
    return str(path.absolute())


def in_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def redact(text: str) -> str:
    """A url without the user name and password that it may carry, for logs and records.

    A password may hold slashes (keys of S3 do) unless a port's digits come before the first one.
    """
    return re.sub(r"(?<=://)(?:[^/@\s]+|[^/@:\s]+:(?!\d+/)[^@\s]+)@", "***@", text)


def join(url: str, *parts: str) -> str:
    """A url below another."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a url and the path inside it.

    Raises:
        BadInput: a protocol that no installed package speaks.
    """
    if "://" not in url:  # fsspec would take "::" in a file's name for a chain of file systems
        return fsspec.filesystem("file"), absolute(url)
    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as fault:
        raise BadInput(f"cannot use the url {redact(url)!r}: {redact(str(fault))}") from fault


def arrow_filesystem(url: str) -> tuple[PyFileSystem, str]:
    """The same as `filesystem`, for pyarrow and Ray."""
    fs, path = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), path


# ---- faults ------------------------------------------------------------------------------------------------------


def faults() -> tuple[type[Exception], ...]:
    """What stores raise, Google's among them once its package is loaded."""
    google = sys.modules.get("gcsfs.retry")
    if not hasattr(google, "validate_response"):  # not there, or still being imported by another thread
        return FAULTS
    return (*FAULTS, google.HttpError, google.google.auth.exceptions.GoogleAuthError)  # type: ignore[union-attr]


def may_pass(fault: BaseException) -> bool:
    """Whether a fault of a store may be gone at another try: broken connection, time-out, server in trouble."""
    status, code = _answer(fault)
    if status is not None:
        return code in PASSING_CODES or status in (408, 429) or (status >= 500 and status not in (501, 507))
    return isinstance(fault, (*CONNECTION_FAULTS, ResponseParserError)) or getattr(fault, "errno", 0) in PASSING_ERRNOS


def explained(fault: BaseException, url: str) -> BadInput | None:
    """What the user can do about a fault of a store, in one line without secrets; None where it is no such fault."""
    name, (status, code) = repr(redact(url)), _answer(fault)
    number = fault.errno if isinstance(fault, OSError) and status is None else None  # s3fs makes errno up
    if number in (errno.ENOSPC, errno.EDQUOT) or code in FULL_CODES or status == 507:
        return BadInput(f"no space left to write {name}: free some and run the same command again")
    if number == errno.EROFS:
        return BadInput(
            f"cannot write {name}, its file system is read-only: choose another folder or mount it writable"
        )
    if code in KEY_CODES or isinstance(
        fault, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound
    ):
        return BadInput(
            f"the store refuses the credentials for {name} ({code or type(fault).__name__}): "
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role"
        )
    if isinstance(fault, PermissionError) or status in (401, 403):
        why = code or status or getattr(fault, "strerror", None) or "refused"
        fix = "choose another folder" if _is_local(url) else "correct the credentials"
        return BadInput(f"no permission for {name} ({why}): {fix}, or ask for access to it")
    if code == "NoSuchBucket":
        return BadInput(f"there is no bucket for {name}: create it, or correct the name or AWS_ENDPOINT_URL")
    if isinstance(fault, boto.FlexibleChecksumError):
        return BadInput(
            f"wrong checksum in an answer of the store of {name}: it may send a whole file's with a part of it, "
            "then set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if isinstance(fault, CONNECTION_FAULTS):
        why = redact(_first_line(fault))
        return BadInput(
            f"cannot reach the store of {name} ({why}): check AWS_ENDPOINT_URL or the host, and the network"
        )
    if isinstance(fault, ValueError) and "Invalid endpoint" in str(fault):
        return BadInput(f"cannot use {name}: AWS_ENDPOINT_URL must be like http://host:port")
    if status is not None and status >= 500:  # a full disk behind rclone is a plain 500
        return BadInput(
            f"the store of {name} keeps answering {status} ({code or 'no reason given'}): "
            "see whether its disk is full or it is overloaded, and run the same command again"
        )
    return None


def _answer(fault: BaseException) -> tuple[int | None, str]:
    """HTTP status and S3's name of the fault in a store's answer; (None, "") where there was no answer."""
    if isinstance(fault, aiohttp.ClientResponseError):
        return fault.status, ""
    if "gcsfs.retry" in sys.modules and (status := _google_status(fault)):
        return status, ""
    for cause in (fault, fault.__cause__):  # s3fs turns S3's answers into OSError
        if isinstance(cause, boto.ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
            return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), code
    return None, ""


def _google_status(fault: BaseException) -> int | None:
    """HTTP status behind a fault of gcsfs; 401 where no credentials were found."""
    google = sys.modules["gcsfs.retry"]
    if isinstance(fault, google.HttpError):
        return int(fault.code) if fault.code else None
    if isinstance(fault, google.google.auth.exceptions.GoogleAuthError):
        return 401
    return 403 if isinstance(fault, OSError) and str(fault).startswith("Forbidden: ") else None


def _first_line(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]


def _patient(operation: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """An operation on a url, tried again where its fault may pass. It must be one that may be done twice.

    The operation also raises BadInput, for faults that the user can do something about.
    """

    @functools.wraps(operation)
    def patient(url: str, *args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return operation(url, *args, **kwargs)
            except faults() as fault:
                if attempt == ATTEMPTS or not may_pass(fault):
                    told = explained(fault, url)
                    if told is None:
                        raise
                    raise told from fault
                what = (operation.__name__.strip("_"), redact(url), redact(_first_line(fault)), attempt, ATTEMPTS)
                log.warning("%s of %s failed (%s), attempt %d of %d", *what)
                spread = random.SystemRandom().uniform(0.5, 1.5)  # many workers, one store; seeded draws are not ours
                time.sleep(spread * BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    return patient


# ---- files -------------------------------------------------------------------------------------------------------


def make_folder(url: str) -> None:
    """Make a folder for output, or find out now what would fail hours later. Buckets are never made.

    Raises:
        BadInput: it cannot be made, written to, read from or cleaned.
    """
    probe = join(url, f".writable-{uuid.uuid4().hex}")
    try:
        fs, path = _fresh(probe)
        _make_parent(fs, path)
        fs.pipe_file(path, os.urandom(65536))  # an empty file fits on a full disk
        fs.cat_file(path)
        fs.rm_file(path)
    except faults() as fault:
        told = explained(fault, url)
        raise told or BadInput(f"cannot write to {redact(url)!r}: {redact(_first_line(fault))}") from fault
    finally:
        if _is_local(url):
            with suppress(OSError):  # what did not fit still has its name
                os.unlink(filesystem(probe)[1])


def free_bytes(url: str) -> float:
    """Space that is left for files below a local folder, which must exist; infinite elsewhere."""
    return shutil.disk_usage(filesystem(url)[1]).free if _is_local(url) else math.inf


@_patient
def exists(url: str) -> bool:
    fs, path = _fresh(url)
    return fs.exists(path)


def list_files(url: str, suffix: str = "") -> list[str]:
    """Urls of the files directly inside a folder, sorted; empty where the folder is missing."""
    return [join(url, name) for name in list_names(url, suffix)]


@_patient
def list_names(url: str, suffix: str = "") -> list[str]:
    """Names of the files directly inside a folder, sorted; empty where the folder is missing.

    A local folder of millions is told by its entries alone: fsspec would ask for the size of each and keep it.
    """
    fs, path = _fresh(url)
    if not fs.isdir(path):
        return []
    if _is_local(url):
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
    names = [info["name"] for info in fs.ls(path, detail=True) if info["type"] == "file"]
    # Some tools mark a folder of an object store by an object whose name ends in a slash.
    return sorted(os.path.basename(n) for n in names if n.endswith(suffix) and not n.endswith("/"))


@_patient
def remove_files(url: str, names: list[str]) -> None:
    """Remove these files directly inside a folder, many in a request where the store allows it; some may be gone."""
    fs, path = _fresh(url)
    if not _is_local(url):
        with suppress(FileNotFoundError):
            fs.rm([join(path, name) for name in names])
        fs.invalidate_cache()
        there = {os.path.basename(info["name"]) for info in fs.ls(path, detail=True)} if fs.isdir(path) else set()
        if left := there & set(names):  # s3fs does not tell of single objects that a bulk removal left
            raise OSError(
                errno.EBUSY, f"{len(left)} files, {min(left)} first, still there after their removal", redact(url)
            )
        return
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(join(path, name))


@_patient
def find(url: str) -> dict[str, dict[str, Any]] | None:
    """What a store tells of every file below a folder, by path inside the store; None where there is no such folder."""
    fs, path = _fresh(url)
    return fs.find(path, detail=True) if fs.isdir(path) else None


@_patient
def read_bytes(url: str) -> bytes:
    fs, path = _fresh(url)
    return fs.cat_file(path)


@_patient
def read_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Bytes start..end (end excluded) of one file for each range, read at the same time where the store allows it.

    Raises:
        OSError: a range reaches outside the file, or the store does not serve parts of files.
    """
    fs, path = _fresh(url)
    asked = [(start, end) for start, end in ranges if end > start]
    starts, ends = [start for start, _ in asked], [end for _, end in asked]
    parts = iter(fs.cat_ranges([path] * len(asked), starts, ends, on_error="raise") if asked else [])
    found = [next(parts) if end > start else b"" for start, end in ranges]
    for (start, end), part in zip(ranges, found, strict=True):
        if len(part) != end - start:
            raise OSError(f"{redact(url)}: asked for bytes {start} to {end}, got {len(part)}")
    return found


@_patient
def read_row_group(url: str, group: int, columns: list[str]) -> pa.Table:
    """One row group of a Parquet file; a local one is mapped into memory, which is twice as fast.

    A mapped file that shrinks while it is read ends the process; files of a dataset are never written in place.
    """
    fs, path = filesystem(url)
    with pa.memory_map(path) if _is_local(url) else fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(group, columns=columns)


def read_columns(url: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file that fits in memory, or those of these columns that it has."""
    return pq.ParquetFile(pa.BufferReader(read_bytes(url))).read(columns=columns)


@_patient
def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    if not _is_local(url):
        fs.pipe_file(path, data)  # object stores publish an object when it is complete
        return
    with _draft(path) as draft:
        fs.pipe_file(draft, data)
        os.replace(draft, path)


@_patient
def put_file(url: str, local: Path) -> None:
    """Copy a local file to a url, large ones in parts: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    if not _is_local(url):
        fs.put_file(str(local), path)
        return
    with _draft(path) as draft:
        fs.put_file(str(local), draft)
        os.replace(draft, path)


@_patient
def get_file(url: str, local: Path) -> None:
    """Copy a file at a url to a local one, whose folder is made."""
    fs, path = _fresh(url)
    local.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(path, str(local))


def write_new(url: str, data: bytes) -> bool:
    """Write a whole file only if there is none yet. False: there is one, and it stands.

    That file is another writer's, or this very write's where the store took it and the answer was lost on the way. A
    caller must therefore not care which: writers of one name write equal content, or look at what stands.

    A store that ignores put-if-absent (`honours_create`) lets a writer that comes between the look and the write
    replace the file: both are then told True, and the later one stands.
    """
    if not _is_local(url) and exists(url):
        return False
    return _create(url, data)


def honours_create(url: str) -> bool:
    """Whether the store of a folder itself refuses to write one name twice, however close the writers are.

    Found by trying, with files that are removed again: S3's `If-None-Match: *` is ignored by some stores (rclone), and
    some local file systems have no hard links.
    """
    probe = join(url, f".create-{uuid.uuid4().hex}")
    try:
        _create(probe, b"first")  # its answer may be lost, and a second try then refused
        return not _create(probe, b"second") and (not _is_local(url) or _has_hard_links(filesystem(probe)[1]))
    finally:
        remove(probe)


@_patient
def _create(url: str, data: bytes) -> bool:
    """`write_new` as far as the store itself sees to it."""
    fs, path = filesystem(url)
    _make_parent(fs, path)
    try:
        if not _is_local(url):
            fs.pipe_file(path, data, mode="create")
            return True
        with _draft(path) as draft:
            fs.pipe_file(draft, data)
            _link(draft, path)
    except FileExistsError:
        return False
    return True


def _link(draft: str, path: str) -> None:
    """Give a file a second name. Fails if the name exists, and never shows half a file."""
    try:
        os.link(draft, path)
    except OSError as fault:
        if fault.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(path):  # exFAT and some network mounts: no way to look and write in one step
            raise FileExistsError(path) from fault
        os.replace(draft, path)


def _has_hard_links(path: str) -> bool:
    other = f"{path}.link"
    try:
        os.link(path, other)
    except OSError as fault:
        if fault.errno not in NO_HARD_LINKS:
            raise
        return False
    os.unlink(other)
    return True


@_patient
def remove(url: str) -> None:
    """Remove a file or a tree; nothing happens where there is none."""
    fs, path = _fresh(url)
    if not fs.exists(path):
        return
    with suppress(FileNotFoundError):  # another process, or an attempt whose answer was lost
        fs.rm(path, recursive=True)
    fs.invalidate_cache()
    if fs.exists(path):  # s3fs does not tell of single objects that a bulk removal left
        raise OSError(errno.EBUSY, "still there after its removal", redact(url))


def listing_version(info: dict[str, Any]) -> str | None:
    """What changes when a file changes under the same name, of an fsspec info: a tag of its content, else a time.

    None where the store tells nothing (many http servers). The same file gives the same text from a listing as alone.
    """
    for key in VERSION_KEYS:
        if info.get(key):
            return f"{key.lower()}:{str(info[key]).removeprefix('W/').strip(chr(34))}"  # rclone lists them unquoted
    for key in TIME_KEYS:
        if info.get(key):
            value = info[key].timestamp() if isinstance(info[key], datetime) else info[key]
            return f"modified:{int(value) if key == 'LastModified' else value}"  # S3 tells fractions in listings only
    return None


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith(("file://", "local://"))


def _fresh(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """`filesystem`, without what it remembers of earlier listings: other processes write too."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs, path


def _make_parent(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Make the folder a file goes into. Object stores need none, and theirs would make a missing bucket."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & OBJECT_STORES:
        fs.makedirs(os.path.dirname(path), exist_ok=True)


@contextmanager
def _draft(path: str) -> Iterator[str]:
    """The name of a file beside `path` to write into, which is gone after the block, whatever happens."""
    draft = f"{path}.{uuid.uuid4().hex}.tmp"  # threads share a process id, and so do containers
    try:
        yield draft
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def read_lines(url: str) -> list[str]:
    """Lines of a list, stripped; spreadsheets begin files with a byte order mark.

    Raises:
        BadInput: no such file.
    """
    if not exists(url):
        raise BadInput(f"no list at {url!r}")
    return [line.strip() for line in read_bytes(url).decode("utf-8-sig", errors="replace").splitlines()]


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: the same value always gives the same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
