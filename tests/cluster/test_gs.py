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

from cluster import storage
from cluster.shards import read_manifest
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
    url = storage.join(bucket, "deep", "a b.bin")
    storage.make_folder(storage.join(bucket, "deep"))
    storage.write_bytes(url, b"hello world")
    assert storage.list_files(storage.join(bucket, "deep")) == [url]
    assert storage.read_bytes(url) == b"hello world"
    assert storage.read_ranges(url, [(0, 3), (5, 5), (4, 9)]) == [b"hel", b"", b"o wor"]
    fs, path = storage.filesystem(url)
    first = storage.listing_version(fs.info(path))
    storage.write_bytes(url, b"hello there")
    fs.invalidate_cache()
    assert storage.listing_version(fs.info(path)) not in (None, first)
    assert not storage.write_new(url, b"third") or not storage.honours_create(
        bucket
    )  # the emulator ignores put-if-absent
    storage.remove(storage.join(bucket, "deep"))
    assert storage.list_files(storage.join(bucket, "deep")) == []


def test_gs_errors_are_transient_or_bad_input() -> None:
    busy = gcsfs_retry.HttpError({"code": 503, "message": "try later"})
    assert storage.may_pass(busy)
    assert isinstance(busy, storage.faults())
    assert not storage.may_pass(gcsfs_retry.HttpError({"code": 400, "message": "no"}))
    no_credentials = gcsfs_retry.google.auth.exceptions.DefaultCredentialsError("none found")
    for error in (
        no_credentials,
        OSError("Forbidden: https://host/clips\nnot yours"),
        gcsfs_retry.HttpError({"code": 401}),
    ):
        assert not storage.may_pass(error)
        assert "correct the credentials" in str(storage.explained(error, "gs://clips/x"))


def test_gs_missing_bucket_for_output_is_bad_input(bucket: str) -> None:
    with pytest.raises(InputError, match="cannot write to 'gs://nobody-made-this/x'"):
        storage.make_folder("gs://nobody-made-this/x")
    assert storage.list_files(bucket) == []


@pytest.mark.slow
def test_prepare_from_bucket_to_bucket(bucket: str, tmp_path: Path) -> None:
    for n in range(2):
        write_mp4(draw_clip("Spin", num_frames=96, size=(96, 128), seed=n).frames, tmp_path / f"{n}.mp4", 25.0)
        storage.put_file(storage.join(bucket, "videos", f"{n}.mp4"), tmp_path / f"{n}.mp4")
    out = storage.join(bucket, "made")
    words = [f"sources={bucket}/videos", f"out={out}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    job = subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *words], env=os.environ, capture_output=True, text=True, timeout=280
    )
    assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-3000:]
    manifest = read_manifest(out)
    assert manifest.counts["sources"] == manifest.counts["accepted"] == 2
    assert json.loads(storage.read_bytes(storage.join(out, "manifest.json")))["digest"] == manifest.digest
