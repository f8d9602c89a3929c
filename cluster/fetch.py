"""A source's bytes as a local file: decoders need to seek."""

from __future__ import annotations

import errno
import logging
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from fsspec import AbstractFileSystem

from cluster import storage
from cluster.sources import Source
from vgan.errors import BadVideo

FETCH_ATTEMPTS, BACKOFF_S = 3, 1.0
HTTP_FINAL = frozenset({403, 404, 410, 451})  # forbidden, missing, gone, unavailable for legal reasons

log = logging.getLogger(__name__)


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """The video as a local file, for the length of the block.

    Raises:
        BadVideo: there is no such file, it may not be read, or it is not the one that was listed (fetch: missing,
            unreadable, http_403 and the like, changed). That is final: it becomes a reject.
        BadInput, OSError: anything else that goes wrong while fetching, after FETCH_ATTEMPTS. It ends the job with the
            video uncommitted, for credentials that ran out or a network that went down must not reject a corpus.
    """
    fs, path = storage.filesystem(source.uri)
    if "file" in fs.protocol:
        try:
            if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for ever
                raise BadVideo("fetch", "unreadable", "not a regular file")
            with open(path, "rb"):
                pass
        except (FileNotFoundError, NotADirectoryError) as fault:
            raise BadVideo("fetch", "missing", str(fault)) from fault
        except (PermissionError, ValueError) as fault:  # ValueError: a NUL in the name
            raise BadVideo("fetch", "unreadable", str(fault)) from fault
        except OSError as fault:
            if fault.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            raise BadVideo("fetch", "unreadable", str(fault)) from fault
        _check_unchanged(source, Path(path).stat().st_size, storage.listing_version(fs.info(path)))
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "video"
        _fetch(fs, path, local, source.uri)
        fs.invalidate_cache()  # a cached listing would hide a change
        version = storage.listing_version(fs.info(path)) if source.version else None
        _check_unchanged(source, local.stat().st_size, version)
        yield local


def _check_unchanged(source: Source, size: int, version: str | None) -> None:
    """Raise BadVideo if these are not the bytes that were listed; a source that was not measured then has no say."""
    if source.bytes is not None and source.bytes != size:
        raise BadVideo("fetch", "changed", f"{source.bytes} bytes when listed, {size} now: list the sources again")
    if source.version and version and source.version != version:
        raise BadVideo("fetch", "changed", f"version {source.version} when listed, {version} now: list again")


def _fetch(fs: AbstractFileSystem, path: str, local: Path, uri: str) -> None:
    """Copy a remote file, trying again where the fault may pass."""
    name, last = storage.redact(uri), Exception()
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            fs.get_file(path, str(local))
            return
        except FileNotFoundError as fault:
            raise BadVideo("fetch", "missing", str(fault)) from fault
        except PermissionError as fault:  # of an object store: the job's credentials, not this video
            raise (storage.explained(fault, uri) or fault) from fault
        except storage.faults() as fault:
            if isinstance(fault, aiohttp.ClientResponseError) and fault.status in HTTP_FINAL:
                raise BadVideo("fetch", f"http_{fault.status}", fault.message) from fault
            last = fault
        log.warning("fetching %s failed (%s), attempt %d of %d", name, last, attempt, FETCH_ATTEMPTS)
        if attempt < FETCH_ATTEMPTS:
            time.sleep(BACKOFF_S * 2**attempt)
    raise storage.explained(last, uri) or OSError(f"fetching {name} failed {FETCH_ATTEMPTS} times: {last}")
