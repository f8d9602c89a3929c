"""Storage on local and in-memory file systems: atomic writes, put-if-absent, listings and errors."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from cluster.storage.conditional_write import put_if_absent, supports_put_if_absent
from cluster.storage.files import (
    exists,
    json_bytes,
    list_files,
    make_writable_folder,
    read_bytes,
    read_json,
    read_ranges,
    remove_tree,
    version_tag,
    write_bytes,
    write_json,
)
from cluster.storage.urls import absolute_url, filesystem, join_url, redact
from vgan.errors import InputError


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty folder."""
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    yield "memory://store"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def test_absolute_completes_local_paths_and_leaves_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_url("out/clips") == f"{tmp_path}/out/clips"
    assert absolute_url("~/clips") == "/home/someone/clips"
    assert absolute_url("/data") == "/data"
    assert absolute_url("s3://bucket/clips") == "s3://bucket/clips"


def test_join_puts_exactly_one_slash() -> None:
    assert join_url("s3://bucket/a/", "b", "c.json") == join_url("s3://bucket/a", "b", "c.json")
    assert join_url("/a", "b") == "/a/b"


def test_filesystem_of_an_unknown_protocol_is_bad_input() -> None:
    with pytest.raises(InputError, match="nosuch://x/y"):
        filesystem("nosuch://x/y")


def test_write_bytes_makes_folders_replaces_and_leaves_nothing_else(folder: str) -> None:
    url = join_url(folder, "deep", "er", "file.bin")
    assert not exists(url)
    write_bytes(url, b"old and long")
    write_bytes(url, b"new")
    assert read_bytes(url) == b"new"
    assert list_files(join_url(folder, "deep", "er")) == [url]


def test_write_bytes_readers_never_see_a_part(tmp_path: Path) -> None:
    url, contents, stop = str(tmp_path / "file"), {bytes([n]) * 2_000_000 for n in range(2)}, threading.Event()
    write_bytes(url, next(iter(contents)))

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_bytes(url, content)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        contents_read = {read_bytes(url) for _ in range(100)}
        stop.set()
        for writer in writers:
            writer.result()
    assert contents_read <= contents
    assert len(list(tmp_path.iterdir())) == 1


def test_write_new_keeps_the_first_file(folder: str) -> None:
    url = join_url(folder, "commits", "a.json")
    assert put_if_absent(url, b"first")
    assert not put_if_absent(url, b"second")
    assert read_bytes(url) == b"first"
    assert list_files(join_url(folder, "commits")) == [url]


def test_write_new_of_many_writers_has_one_winner_whose_bytes_remain(tmp_path: Path) -> None:
    for attempt in range(20):
        url, gate = str(tmp_path / f"{attempt}"), threading.Barrier(8)

        def claim(writer: int, url: str = url, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return put_if_absent(url, bytes([writer]) * 100_000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(claim, range(8)))
        assert won.count(True) == 1
        assert read_bytes(url) == bytes([won.index(True)]) * 100_000
    assert len(list(tmp_path.iterdir())) == 20


def test_list_files_is_sorted_filtered_and_flat(folder: str) -> None:
    for name in ("b.json", "a.json", "c.txt", "below/d.json"):
        write_bytes(join_url(folder, name), b"")
    assert list_files(folder, ".json") == [join_url(folder, n) for n in ("a.json", "b.json")]
    assert list_files(join_url(folder, "nothing here")) == []


def test_json_bytes_are_canonical_and_survive_storage(folder: str) -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    assert json_bytes(value) == json_bytes(dict(reversed(value.items())))
    write_json(join_url(folder, "x.json"), value)
    assert read_json(join_url(folder, "x.json")) == value


def test_remove_deletes_a_folder_and_ignores_a_missing_one(folder: str) -> None:
    for name in ("deleted/a", "deleted/b/c", "kept"):
        write_bytes(join_url(folder, name), b"")
    remove_tree(join_url(folder, "deleted"))
    remove_tree(join_url(folder, "deleted"))
    assert not exists(join_url(folder, "deleted"))
    assert exists(join_url(folder, "kept"))


@pytest.mark.parametrize(
    "name", ["-i.mp4", "a b\u00e9.mp4", "100%.mp4", "a#b?.mp4", "x[1]*.mp4", "a::b.mp4", "a:b.mp4"]
)
def test_local_files_with_special_characters_in_their_names_work(tmp_path: Path, name: str) -> None:
    url = str(tmp_path / name)
    write_bytes(url, b"x")
    assert (tmp_path / name).read_bytes() == read_bytes(url) == b"x"
    assert exists(url)
    remove_tree(url)
    assert list(tmp_path.iterdir()) == []


def test_redact_blanks_the_password_and_leaves_the_rest() -> None:
    assert redact("postgresql://user:secret@db:5432/x") == "postgresql://***@db:5432/x"
    assert redact("s3://bucket/a@b.mp4") == "s3://bucket/a@b.mp4"


def test_relative_path_in_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match="'out/clips' is relative"):
        absolute_url("out/clips")
    assert absolute_url("/out/clips") == "/out/clips"
    assert absolute_url("s3://bucket/clips") == "s3://bucket/clips"


def test_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_bytes(str(tmp_path / "taken"), b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_full_disk_is_bad_input_and_existing_files_remain(mount: Callable[[str], Path]) -> None:
    disk = mount("size=1m")
    make_writable_folder(str(disk))
    write_bytes(str(disk / "file"), b"old")
    for write in (write_bytes, put_if_absent):
        with pytest.raises(InputError, match=f"no space left to write '{disk}/.*free some"):
            write(str(disk / ("file" if write is write_bytes else "other")), bytes(2_000_000))
    assert read_bytes(str(disk / "file")) == b"old"
    assert [path.name for path in disk.iterdir()] == ["file"]
    write_bytes(str(disk / "filler"), bytes(1_000_000))
    with pytest.raises(InputError, match="no space left"):
        make_writable_folder(str(disk / "out"))


def test_read_only_file_system_is_bad_input(mount: Callable[[str], Path]) -> None:
    disk = mount("ro")
    with pytest.raises(InputError, match=f"cannot write '{disk}/out', its file system is read-only"):
        make_writable_folder(str(disk / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission for"):
        make_writable_folder(str(tmp_path / "closed" / "out"))


def test_make_folder_below_a_file_is_bad_input_and_elsewhere_leaves_nothing(folder: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(InputError, match="taken"):
        make_writable_folder(str(tmp_path / "taken" / "out"))
    make_writable_folder(folder)
    make_writable_folder(folder)
    assert list_files(folder) == []


def test_read_ranges_returns_each_range_and_rejects_ranges_outside_the_file(folder: str) -> None:
    url = join_url(folder, "a")
    write_bytes(url, b"0123456789")
    assert read_ranges(url, [(3, 5), (0, 10), (9, 10), (4, 4)]) == [b"34", b"0123456789", b"9", b""]
    assert read_ranges(url, []) == []
    with pytest.raises(OSError, match="bytes 8 to 12, got 2"):
        read_ranges(url, [(8, 12)])


def test_local_and_memory_file_systems_support_put_if_absent(folder: str) -> None:
    assert supports_put_if_absent(folder)
    assert list_files(folder) == []


def test_file_system_without_hard_links_still_keeps_the_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as link(2) on FAT

    monkeypatch.setattr(os, "link", refuse)
    assert not supports_put_if_absent(str(tmp_path))
    assert put_if_absent(str(tmp_path / "a"), b"first")
    assert not put_if_absent(str(tmp_path / "a"), b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_listing_version_changes_with_the_file_and_not_with_reading(folder: str) -> None:
    url = join_url(folder, "a")
    write_bytes(url, b"one")
    fs, path = filesystem(url)
    first = version_tag(fs.info(path))
    assert read_bytes(url) == b"one"
    assert first
    assert first == version_tag(fs.find(fs._parent(path), detail=True)[path])
    time.sleep(0.02)  # file times have the coarse resolution of kernel ticks
    write_bytes(url, b"two")
    assert version_tag(fs.info(path)) not in (None, first)


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"ETag": '"abc"', "LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, "etag:abc"),
        ({"ETag": 'W/"abc"'}, "etag:abc"),
        ({"generation": "17", "md5Hash": "x", "etag": "changes with labels"}, "generation:17"),
        ({"LastModified": datetime(1970, 1, 1, 0, 0, 9, 500_000, tzinfo=UTC)}, "modified:9"),
        ({"Last-Modified": "Thu, 01 Jan 1970 00:00:09 GMT"}, "modified:Thu, 01 Jan 1970 00:00:09 GMT"),
        ({"mtime": 9.25, "created": 8.0}, "modified:9.25"),
        ({"size": 3}, None),
    ],
)
def test_listing_version_prefers_tags_of_the_content(info: dict[str, object], version: str | None) -> None:
    assert version_tag(info) == version


def test_local_errors_are_not_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "missing"))
    with pytest.raises(IsADirectoryError):
        read_bytes(str(tmp_path))
    assert caplog.text == ""


def test_redact_blanks_a_password_with_slashes_and_leaves_ports() -> None:
    assert redact("s3://KEY:ab/cd+e@bucket/x") == "s3://***@bucket/x"
    assert redact("http://host:8080/a@b.mp4") == "http://host:8080/a@b.mp4"
