"""Exclusive writes: put an object only if none is there."""

from __future__ import annotations

import errno
import os
import uuid

from cluster.storage.files import exists, make_parent, remove_tree, temporary_path
from cluster.storage.retry import with_retries
from cluster.storage.urls import filesystem, is_local_url, join_url

NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def put_if_absent(url: str, data: bytes) -> bool:
    """Write a file atomically unless it exists.

    An existing file is another writer's, or the result of this call if the store completed the write and its response
    was lost. Callers must not depend on which: writers of one name write equal content, or read the file afterward.

    A store without put-if-absent (see `supports_put_if_absent`) lets a writer that starts between this function's check
    and its write replace the file: both calls then return True, and the later content remains.

    Returns:
        True if the file was written, False if it existed and was left unchanged.
    """
    if not is_local_url(url) and exists(url):
        return False
    return _create_file(url, data)


def supports_put_if_absent(url: str) -> bool:
    """Return True if the store of a folder supports put-if-absent: never writes one name twice, even concurrently.

    Tests it with files that are removed again: some stores (rclone) ignore S3's `If-None-Match: *`, and some local
    file systems have no hard links.
    """
    probe = join_url(url, f".create-{uuid.uuid4().hex}")
    try:
        _create_file(probe, b"first")  # result unused: after a lost response, the second attempt returns False
        return not _create_file(probe, b"second") and (not is_local_url(url) or _has_hard_links(filesystem(probe)[1]))
    finally:
        remove_tree(probe)


@with_retries
def _create_file(url: str, data: bytes) -> bool:
    """Write a file with the store's own put-if-absent; False if the file exists."""
    fs, path = filesystem(url)
    make_parent(fs, path)
    try:
        if not is_local_url(url):
            fs.pipe_file(path, data, mode="create")  # on S3 the request header If-None-Match: *
            return True
        with temporary_path(path) as temporary:
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
