"""Files by url: the one storage layer, fsspec everywhere (file, s3, gs, http, memory)."""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from pyarrow.fs import FSSpecHandler, PyFileSystem

from vgan.errors import BadInput


def absolute(url: str) -> str:
    """A url as it is, a local path made absolute: workers run in other folders than the driver.

    Raises:
        BadInput: a relative path in a submitted job, which runs in a copy of the code that Ray deletes.
    """
    if "://" in url:
        return url
    path = Path(url).expanduser()
    if not path.is_absolute() and in_submitted_job():
        raise BadInput(f"{url!r} is relative, and a submitted job's folder is deleted: give an absolute path or a url")
    return str(path.absolute())


def in_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def redact(text: str) -> str:
    """A url without the user name and password that it may carry, for logs and records."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


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
        raise BadInput(f"cannot use the url {url!r}: {fault}") from fault


def arrow_filesystem(url: str) -> tuple[PyFileSystem, str]:
    """The same as `filesystem`, for pyarrow and Ray."""
    fs, path = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def make_folder(url: str) -> None:
    """Make a folder for output.

    Raises:
        BadInput: it cannot be made or written to.
    """
    fs, path = filesystem(url)
    probe = f"{path.rstrip('/')}/.writable-{os.getpid()}"
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    except OSError as fault:
        raise BadInput(f"cannot write to {url!r}: {fault}") from fault


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def list_files(url: str, suffix: str = "") -> list[str]:
    """Urls of the files directly inside a folder, sorted; empty where the folder is missing."""
    fs, path = filesystem(url)
    fs.invalidate_cache()  # s3fs would answer from an old listing
    if not fs.isdir(path):
        return []
    names = [info["name"] for info in fs.ls(path, detail=True) if info["type"] == "file"]
    return sorted(join(url, os.path.basename(name)) for name in names if name.endswith(suffix))


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    if "file" not in fs.protocol:
        fs.pipe_file(path, data)  # object stores publish an object when it is complete
        return
    with _draft(fs, path, data) as draft:
        os.replace(draft, path)


def write_new(url: str, data: bytes) -> bool:
    """Write a whole file only if there is none yet. False: another writer was first, and its file stands."""
    fs, path = filesystem(url)
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    if "file" not in fs.protocol:
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    with _draft(fs, path, data) as draft:
        try:
            os.link(draft, path)  # fails if the name exists, and never shows half a file
        except FileExistsError:
            return False
    return True


@contextmanager
def _draft(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> Iterator[str]:
    """A file beside `path` that holds `data` and is gone after the block, whatever happens.

    Raises:
        BadInput: the disk is full.
    """
    draft = f"{path}.{uuid.uuid4().hex}.tmp"  # threads share a process id, and so do containers
    try:
        fs.pipe_file(draft, data)
        yield draft
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(f"no space left to write {path!r}: free some and run the same command again") from fault
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: the same value always gives the same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def remove(url: str) -> None:
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)
