"""Download of sources to local files, in which decoders can seek."""

from __future__ import annotations

import asyncio
import errno
import functools
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import Callback

from cluster.sources.config import FetchConfig
from cluster.sources.fetch_errors import UNREACHABLE, final_error, is_worth_retrying, retry_after_s
from cluster.sources.http_client import private_client, public_client
from cluster.sources.manifest import Source
from cluster.storage.errors import retryable_exceptions
from cluster.storage.files import version_tag
from cluster.storage.retry import retry
from cluster.storage.urls import OBJECT_STORES, filesystem, is_local_url, redact
from vgan.errors import InputError, VideoError

BACKOFF_S = 2.0  # pause after the first failed attempt
MIN_BYTES_PER_S = 1000.0  # mean over fetch.idle_s; 8 kbit per second is below the bit rate of video
CHECK_S = 0.5  # interval between comparisons of a running download with its limits
SCHEMES = OBJECT_STORES | {"file", "local", "hdfs", "memory"}  # besides http and https


@contextmanager
def local_copy(source: Source, fetch: FetchConfig) -> Iterator[Path]:
    """Provide a video as a local file for the duration of the block; remote files are downloaded.

    Args:
        source: The video.
        fetch: Limits on the download.

    Yields:
        Path of the local file.

    Raises:
        VideoError: The file cannot be fetched (stage fetch). Reason `unreachable` is a network fault of this video or
            its host, which a later run may not have. All others are final: missing, unreadable, changed, too_large,
            invalid_url, private_address, and http_403 or similar.
        InputError: An error that all videos have: no disk space for the copy, or refused credentials of an object
            store.
    """
    if not is_remote(source):
        fs, path = _filesystem(source.uri, fetch)
        _check_readable(path)
        _check_unchanged(source, Path(path).stat().st_size, version_tag(fs.info(path)))
        yield Path(path)
        return
    fs, path = _filesystem(source.uri, fetch)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "video"
        version = _download(fs, path, local, source, fetch)
        _check_unchanged(source, local.stat().st_size, version)
        yield local


def is_remote(source: Source) -> bool:
    """Return True if a video has to be downloaded."""
    return not is_local_url(source.uri)


def _check_readable(path: str) -> None:
    """Raise VideoError unless a local path is a regular file that can be opened."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would block forever
            raise VideoError("fetch", "unreadable", "not a regular file")
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError("fetch", "missing", str(error)) from error
    except (PermissionError, ValueError) as error:  # ValueError: a NUL in the name
        raise VideoError("fetch", "unreadable", str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise VideoError("fetch", "unreadable", str(error)) from error


def _check_unchanged(source: Source, size: int, version: str | None) -> None:
    """Raise VideoError if size or version differ from those in the manifest; values missing there are not compared."""
    if source.bytes is not None and source.bytes != size:
        raise VideoError("fetch", "changed", f"{source.bytes} bytes when listed, {size} now: list the sources again")
    if source.version and version and source.version != version:
        raise VideoError(
            "fetch", "changed", f"version {source.version} when listed, {version} now: list the sources again"
        )


def _filesystem(uri: str, fetch: FetchConfig) -> tuple[AbstractFileSystem, str]:
    """Resolve the url of a video to its file system and the path inside it.

    Raises:
        VideoError: The url is not valid, or not permitted in lists, which come from strangers: another scheme, or one
            of fsspec's chains of file systems ("zip://a::http://b").
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
    if scheme in ("http", "https"):
        return fsspec.filesystem("http", get_client=private_client if fetch.private_addresses else public_client), uri
    if scheme not in SCHEMES or ("://" in uri and "::" in uri):
        raise VideoError("fetch", "invalid_url", "this scheme is not permitted")
    try:
        return filesystem(uri)
    except InputError as error:
        raise VideoError("fetch", "invalid_url", str(error)) from error


def _host(uri: str) -> str:
    """Return host and port of a url; raise VideoError if they cannot be parsed."""
    try:
        return urlsplit(uri).netloc.rpartition("@")[2]
    except ValueError as error:
        raise VideoError("fetch", "invalid_url", str(error)) from error


class HostPauses:
    """Pauses that HTTP hosts have requested by Retry-After, followed for all later downloads of this process."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # host -> time.monotonic()

    def request(self, host: str, pause_s: float) -> None:
        """Record that a host requests no download for `pause_s` seconds."""
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        if pause_s > 0:
            self._until[host] = max(self._until.get(host, 0.0), now + pause_s)

    def remaining_s(self, host: str) -> float:
        """Return the time in seconds until a host accepts downloads again; 0 if it requested no pause."""
        return max(0.0, self._until.get(host, 0.0) - time.monotonic())


@functools.lru_cache(maxsize=1)
def process_host_pauses() -> HostPauses:
    """Return the pauses known to this worker process."""
    return HostPauses()


def _download(fs: AbstractFileSystem, path: str, local: Path, source: Source, fetch: FetchConfig) -> str | None:
    """Copy a remote file to a local path and return its version tag, if the source has one to compare it with.

    Errors that may pass are followed by another attempt, after the host's Retry-After or a doubling pause.
    """
    deadline, pauses, host = time.monotonic() + fetch.total_s, process_host_pauses(), _host(source.uri)

    def attempt() -> str | None:
        try:
            return _copy(fs, path, local, source, fetch, deadline)
        except Exception as error:
            pauses.request(host, retry_after_s(error))
            raise

    def is_retryable(error: Exception) -> bool:
        return (
            isinstance(error, retryable_exceptions())
            and is_worth_retrying(error)
            and pauses.remaining_s(host) <= fetch.max_pause_s
            and time.monotonic() < deadline
        )

    if (remaining_s := pauses.remaining_s(host)) > fetch.max_pause_s:
        raise VideoError("fetch", UNREACHABLE, "the host requested a longer pause than fetch.max_pause_s")
    time.sleep(remaining_s)
    try:
        return retry(
            attempt,
            f"download of {redact(source.uri)}",
            attempts=fetch.attempts,
            backoff_s=BACKOFF_S,
            is_retryable=is_retryable,
            adjust_pause=lambda _, pause_s: max(pause_s, pauses.remaining_s(host)),
        )
    except retryable_exceptions() as error:
        raise final_error(error, source.uri) from error


def _copy(
    fs: AbstractFileSystem, path: str, local: Path, source: Source, fetch: FetchConfig, deadline: float
) -> str | None:
    """Make one attempt of `_download`."""
    progress = _Progress(fetch, deadline, min_bytes_per_s=MIN_BYTES_PER_S if "http" in fs.protocol else 0.0)
    if not isinstance(fs, AsyncFileSystem):
        fs.get_file(path, str(local), callback=progress)
        return version_tag(fs.info(path)) if source.version else None
    # One request at a time: s3fs would otherwise hold ten parts of 50 MB in memory, and report no progress meanwhile.
    options: dict[str, Any] = {"max_concurrency": 1} if "s3" in fs.protocol else {}
    sync(fs.loop, _within_limits, fs._get_file(path, str(local), callback=progress, **options), progress)
    if not source.version:
        return None
    fs.invalidate_cache()  # a cached listing would hide a change
    try:
        return version_tag(sync(fs.loop, _within_limits, fs._info(path), _Progress(fetch, deadline)))
    except FileNotFoundError as error:  # fsspec's for any failure of this request, and the file was just read
        raise error.__cause__ or error from None


class _Progress(Callback):
    """Progress of one attempt, with its limits.

    Args:
        fetch: The limits.
        deadline: End of the time for the video, time.monotonic().
        min_bytes_per_s: Lowest mean rate within `fetch.idle_s`; 0 disables the test.
    """

    def __init__(self, fetch: FetchConfig, deadline: float, min_bytes_per_s: float = 0.0) -> None:
        super().__init__()
        self._fetch, self._deadline, self._min_bytes_per_s = fetch, deadline, min_bytes_per_s
        self._interval_start, self._interval_bytes = time.monotonic(), 0

    def set_size(self, size: int | None) -> None:
        """Compare the announced size with the limit."""
        super().set_size(size)
        self._check_size(size or 0)

    def relative_update(self, inc: int = 1) -> None:
        """Count received bytes and compare them with the limits."""
        super().relative_update(inc)
        self._interval_bytes += inc
        self._check_size(self.value)
        self.check_time()

    def check_time(self) -> None:
        """Raise TimeoutError if the time for the video has passed, or the server sends too slowly."""
        now, fetch = time.monotonic(), self._fetch
        if now > self._deadline:
            raise TimeoutError(f"not complete within fetch.total_s={fetch.total_s:g}")
        if now - self._interval_start > fetch.idle_s:
            if self._interval_bytes < self._min_bytes_per_s * fetch.idle_s:
                raise TimeoutError(f"stalled: less than 1 kB per second for fetch.idle_s={fetch.idle_s:g}")
            self._interval_start, self._interval_bytes = now, 0

    def _check_size(self, size: int) -> None:
        if size > self._fetch.max_gb * 1e9:
            raise VideoError("fetch", "too_large", f"more than fetch.max_gb={self._fetch.max_gb:g}")


async def _within_limits(operation: Any, progress: _Progress) -> Any:
    """Await a coroutine, and cancel it when `progress` exceeds a limit of time."""
    task = asyncio.ensure_future(operation)
    try:
        while not (await asyncio.wait({task}, timeout=CHECK_S))[0]:
            progress.check_time()
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
