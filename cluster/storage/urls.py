"""Urls and the fsspec file systems behind them.

The environment says where an S3 store is and holds its credentials; a url never does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from pyarrow.fs import FSSpecHandler, PyFileSystem

from vgan.errors import InputError

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})  # buckets without real folders


def absolute_url(url: str) -> str:
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


def join_url(url: str, *parts: str) -> str:
    """Join a URL and the path components below it."""
    return "/".join([url.rstrip("/"), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Resolve a URL to its fsspec file system and the path inside it.

    Raises:
        InputError: No installed package supports the protocol.
    """
    if "://" not in url:  # fsspec would read "::" in a file name as a chain of file systems
        return fsspec.filesystem("file"), absolute_url(url)
    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot use the url {redact(url)!r}: {redact(str(error))}") from error


def arrow_filesystem(url: str) -> tuple[PyFileSystem, str]:
    """Resolve a URL to its pyarrow file system, as pyarrow and Ray expect it, and the path inside it."""
    fs, path = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def is_local_url(url: str) -> bool:
    """Return True for a path or URL of the local file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def uncached_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Resolve a URL like `filesystem` and clear its cache of listings: other processes write too."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs, path
