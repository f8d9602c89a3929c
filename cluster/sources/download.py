"""Download of sources to local files, in which decoders can seek."""

from __future__ import annotations

import errno
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from fsspec import AbstractFileSystem

from cluster.sources.manifest import Source
from cluster.storage.errors import retryable_exceptions, user_error_for
from cluster.storage.files import version_tag
from cluster.storage.retry import retry
from cluster.storage.urls import filesystem, redact
from vgan.errors import VideoError

FETCH_ATTEMPTS, BACKOFF_S = 3, 1.0
HTTP_FINAL = frozenset({403, 404, 410, 451})  # forbidden, missing, gone, unavailable for legal reasons


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """Provide a video as a local file for the duration of the block; remote files are downloaded.

    Args:
        source: The video.

    Yields:
        Path of the local file.

    Raises:
        VideoError: The file is missing, not readable, or has changed since it was listed (stage fetch, reasons missing,
            unreadable, changed, and http_403 or similar). The failure is final: the video is rejected.
        InputError, OSError: Any other error, after FETCH_ATTEMPTS attempts. It ends the job and leaves the video
            uncommitted, so that expired credentials or a network failure do not reject a corpus.
    """
    fs, path = filesystem(source.uri)
    if "file" in fs.protocol:
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
        _check_unchanged(source, Path(path).stat().st_size, version_tag(fs.info(path)))
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "video"
        _download(fs, path, local, source.uri)
        fs.invalidate_cache()  # a cached listing would hide a change
        version = version_tag(fs.info(path)) if source.version else None
        _check_unchanged(source, local.stat().st_size, version)
        yield local


def _check_unchanged(source: Source, size: int, version: str | None) -> None:
    """Raise VideoError if size or version differ from those in the manifest; values missing there are not compared."""
    if source.bytes is not None and source.bytes != size:
        raise VideoError("fetch", "changed", f"{source.bytes} bytes when listed, {size} now: list the sources again")
    if source.version and version and source.version != version:
        raise VideoError(
            "fetch", "changed", f"version {source.version} when listed, {version} now: list the sources again"
        )


def _download(fs: AbstractFileSystem, path: str, local: Path, uri: str) -> None:
    """Copy a remote file to a local path, retrying after errors that are not final."""
    name = f"download of {redact(uri)}"
    try:
        retry(
            lambda: fs.get_file(path, str(local)),
            name,
            attempts=FETCH_ATTEMPTS,
            backoff_s=2 * BACKOFF_S,
            is_retryable=lambda error: isinstance(error, retryable_exceptions()) and not _is_final(error),
        )
    except FileNotFoundError as error:
        raise VideoError("fetch", "missing", str(error)) from error
    except PermissionError as error:  # of an object store: concerns the job's credentials, not this video
        raise (user_error_for(error, uri) or error) from error
    except retryable_exceptions() as error:
        if isinstance(error, aiohttp.ClientResponseError) and error.status in HTTP_FINAL:
            raise VideoError("fetch", f"http_{error.status}", error.message) from error
        raise user_error_for(error, uri) or OSError(f"{name} failed {FETCH_ATTEMPTS} times: {error}") from error


def _is_final(error: Exception) -> bool:
    """Return True for an error that a repeated download would raise again."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in HTTP_FINAL
    return isinstance(error, (FileNotFoundError, PermissionError))
