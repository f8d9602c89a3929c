"""Storage on a local emulator of Google Cloud Storage, and translation of gcsfs errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cluster.dataset.manifest import read_manifest
from cluster.storage.conditional_write import put_if_absent, supports_put_if_absent
from cluster.storage.errors import is_transient, retryable_exceptions, user_error_for
from cluster.storage.files import (
    list_files,
    make_writable_folder,
    put_file,
    read_bytes,
    read_ranges,
    remove_tree,
    version_tag,
    write_bytes,
)
from cluster.storage.urls import filesystem, join_url
from vgan.errors import InputError
from vgan.synthetic import draw_clip
from vgan.video.encode import write_mp4

gcsfs_retry = pytest.importorskip("gcsfs.retry")
emulator = pytest.importorskip("gcp_storage_emulator.server")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server(
        "127.0.0.1", port, in_memory=False, default_bucket="clips", data_dir=tmp_path / "gs"
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no search for credentials on the network
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    server.start()
    yield "gs://clips"
    server.stop()
    fsspec.get_filesystem_class("gs").clear_instance_cache()


def test_gs_files_are_written_listed_read_in_parts_and_removed(bucket: str) -> None:
    url = join_url(bucket, "deep", "a b.bin")
    make_writable_folder(join_url(bucket, "deep"))
    write_bytes(url, b"hello world")
    assert list_files(join_url(bucket, "deep")) == [url]
    assert read_bytes(url) == b"hello world"
    assert read_ranges(url, [(0, 3), (5, 5), (4, 9)]) == [b"hel", b"", b"o wor"]
    fs, path = filesystem(url)
    first = version_tag(fs.info(path))
    write_bytes(url, b"hello there")
    fs.invalidate_cache()
    assert version_tag(fs.info(path)) not in (None, first)
    assert not put_if_absent(url, b"third") or not supports_put_if_absent(bucket)  # the emulator ignores put-if-absent
    remove_tree(join_url(bucket, "deep"))
    assert list_files(join_url(bucket, "deep")) == []


def test_gs_errors_are_transient_or_bad_input() -> None:
    busy = gcsfs_retry.HttpError({"code": 503, "message": "try later"})
    assert is_transient(busy)
    assert isinstance(busy, retryable_exceptions())
    assert not is_transient(gcsfs_retry.HttpError({"code": 400, "message": "no"}))
    no_credentials = gcsfs_retry.google.auth.exceptions.DefaultCredentialsError("none found")
    for error in (
        no_credentials,
        OSError("Forbidden: https://host/clips\nnot yours"),
        gcsfs_retry.HttpError({"code": 401}),
    ):
        assert not is_transient(error)
        assert "correct the credentials" in str(user_error_for(error, "gs://clips/x"))


def test_gs_missing_bucket_for_output_is_bad_input(bucket: str) -> None:
    with pytest.raises(InputError, match="cannot write to 'gs://nobody-made-this/x'"):
        make_writable_folder("gs://nobody-made-this/x")
    assert list_files(bucket) == []


@pytest.mark.slow
def test_prepare_from_bucket_to_bucket(bucket: str, tmp_path: Path) -> None:
    for n in range(2):
        write_mp4(draw_clip("Spin", num_frames=96, size=(96, 128), seed=n).frames, tmp_path / f"{n}.mp4", 25.0)
        put_file(join_url(bucket, "videos", f"{n}.mp4"), tmp_path / f"{n}.mp4")
    out = join_url(bucket, "made")
    words = [f"sources={bucket}/videos", f"out={out}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    job = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *words], env=os.environ, capture_output=True, text=True, timeout=280
    )
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-3000:]
    manifest = read_manifest(out)
    assert manifest.counts["sources"] == manifest.counts["accepted"] == 2
    assert json.loads(read_bytes(join_url(out, "manifest.json")))["digest"] == manifest.digest
