"""Storage on a real S3 server (rclone), with injected network and server errors."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import s3_server
import s3fs
from s3_server import SECRET, Faults, environment, failing_proxy, forget_connections

from cluster.sources.config import FetchConfig
from cluster.sources.download import local_copy
from cluster.sources.manifest import Source
from cluster.storage.conditional_write import put_if_absent, supports_put_if_absent
from cluster.storage.files import (
    exists,
    list_files,
    make_writable_folder,
    read_bytes,
    read_json,
    read_ranges,
    remove_tree,
    version_tag,
    write_bytes,
)
from cluster.storage.retry import ATTEMPTS
from cluster.storage.urls import filesystem, join_url
from vgan.errors import InputError, VideoError

BUCKET = "clips"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Endpoint of a server with one bucket, and the folder it serves."""
    reason = s3_server.required_in_ci()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("s3") / "served"
    with s3_server.s3_server(folder, BUCKET) as endpoint:
        yield endpoint, folder


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Monkeypatch for environment variables of this test, with new s3fs connections that read them."""
    monkeypatch.setenv("HOME", "/nonexistent")  # no ~/.aws
    monkeypatch.setattr("cluster.storage.retry.BACKOFF_S", 0.01)
    forget_connections()
    yield monkeypatch
    forget_connections()


@pytest.fixture
def environ(served: tuple[str, Path], use: pytest.MonkeyPatch) -> str:
    """Endpoint of the server, with environment variables that direct s3fs to it."""
    for name, value in environment(served[0]).items():
        use.setenv(name, value)
    return served[0]


@pytest.fixture
def folder(environ: str) -> str:  # noqa: ARG001 the URL refers to this server
    """URL of an empty folder on the server."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def faults(environ: str, use: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults injected by a proxy; the libraries' own retries are disabled, so that those of `storage` are tested."""
    injected = Faults()
    with failing_proxy(environ, injected) as endpoint:
        use.setenv("AWS_ENDPOINT_URL", endpoint)
        use.setenv("AWS_MAX_ATTEMPTS", "1")
        use.setattr(s3fs.S3FileSystem, "retries", 1)
        yield injected


def test_s3_files_are_written_read_listed_and_removed(folder: str, served: tuple[str, Path]) -> None:
    make_writable_folder(folder)
    names = ["a b\u00e9.json", "-i.json", "100%.json", "b.json"]
    for name in (*names, "below/c.json"):
        write_bytes(join_url(folder, name), name.encode())
    assert list_files(folder, ".json") == sorted(join_url(folder, name) for name in names)
    assert [read_bytes(join_url(folder, name)).decode() for name in names] == names
    assert list_files(join_url(folder, "nothing")) == []
    remove_tree(folder)
    assert not exists(folder)
    assert list((served[1] / BUCKET).glob("**/*.json")) == []


def test_s3_reads_files_of_another_process_without_delay(folder: str) -> None:
    write_bytes(join_url(folder, "a"), b"old")
    assert list_files(folder) == [join_url(folder, "a")]
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file(join_url(folder, "b"), b"new")
    other.pipe_file(join_url(folder, "a"), b"new and longer")
    assert exists(join_url(folder, "b"))
    assert read_bytes(join_url(folder, "a")) == b"new and longer"
    assert list_files(folder) == [join_url(folder, "a"), join_url(folder, "b")]


def test_write_new_on_a_store_without_put_if_absent_keeps_the_first_file(folder: str) -> None:
    assert not supports_put_if_absent(folder)
    assert list_files(folder) == []
    assert put_if_absent(join_url(folder, "a.json"), b"first")
    assert not put_if_absent(join_url(folder, "a.json"), b"second")
    assert read_bytes(join_url(folder, "a.json")) == b"first"


def test_write_new_on_a_store_with_put_if_absent_has_one_winner(folder: str, faults: Faults) -> None:
    faults.put_if_absent = True
    assert supports_put_if_absent(folder)
    gate = threading.Barrier(8)

    def claim(writer: int) -> bool:
        gate.wait()
        return put_if_absent(join_url(folder, "a"), bytes([writer]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(claim, range(8)))
    assert results.count(True) == 1
    assert read_bytes(join_url(folder, "a")) == bytes([results.index(True)]) * 1000


def test_write_new_whose_response_is_lost_leaves_its_content(folder: str, faults: Faults) -> None:
    faults.put_if_absent = True
    faults.next.extend([None, None, "drop_after"])  # the first two requests check that the file is missing
    put_if_absent(join_url(folder, "a"), b"mine")
    assert faults.done["drop_after"] == 1
    assert read_bytes(join_url(folder, "a")) == b"mine"


@pytest.mark.parametrize(("kind", "times"), [("500", 3), ("503", 2), ("drop_before", 2), ("cut_body", 2)])
def test_s3_operations_retry_transient_faults(folder: str, faults: Faults, kind: str, times: int) -> None:
    url = join_url(folder, "a")
    operations = [
        lambda: write_bytes(url, b"0123456789"),
        lambda: read_bytes(url) == b"0123456789",
        lambda: read_ranges(url, [(2, 5)]) == [b"234"],
        lambda: list_files(folder) == [url],
        lambda: exists(url),
        lambda: not put_if_absent(url, b"other"),
        lambda: put_if_absent(join_url(folder, "b"), b"new"),
        lambda: remove_tree(folder),
    ]
    for number, operation in enumerate(operations):
        if kind != "cut_body" or number in (1, 2, 3):  # the others have no body, or do not need all of it
            faults.next.extend([kind] * times)
        assert operation() in (None, True), number
        assert not faults.next, number
    assert list_files(folder) == []


def test_s3_writes_through_an_unreliable_network_are_complete_and_not_repeated(folder: str, faults: Faults) -> None:
    faults.rate, faults.put_if_absent = 0.05, True
    urls = [join_url(folder, f"{number:03d}") for number in range(60)]

    def work(url: str) -> bytes:
        put_if_absent(url, url.encode() * 100)
        put_if_absent(url, b"doubled")
        return read_bytes(url)

    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(work, urls))
    assert contents == [url.encode() * 100 for url in urls]
    assert list_files(folder) == urls
    remove_tree(folder)
    assert list_files(folder) == []
    assert sum(faults.done.values()) - faults.done["passed"] > 10


def test_read_ranges_of_an_object_gives_each_range(folder: str) -> None:
    data = bytes(range(256)) * 40_000
    write_bytes(join_url(folder, "a"), data)
    ranges = [(0, 10), (5_000_000, 5_300_000), (7, 7), (len(data) - 3, len(data))]
    assert read_ranges(join_url(folder, "a"), ranges) == [data[a:b] for a, b in ranges]
    with pytest.raises(OSError, match="requested bytes"):
        read_ranges(join_url(folder, "a"), [(len(data) - 3, len(data) + 1)])


def test_listing_version_of_an_object_is_equal_in_listings_and_changes_with_content(folder: str) -> None:
    url = join_url(folder, "a")
    write_bytes(url, b"one")
    fs, path = filesystem(url)
    first = version_tag(fs.info(path))
    fs.invalidate_cache()
    assert first == version_tag(fs.ls(filesystem(folder)[1], detail=True)[0])
    write_bytes(url, b"two")
    fs.invalidate_cache()
    assert first != version_tag(fs.info(path))
    assert first
    assert first.startswith("etag:")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "no-such-key", "refuses the credentials.*InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret", "refuses the credentials.*SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", None, "refuses the credentials.*PartialCredentialsError|NoCredentialsError"),
        ("AWS_PROFILE", "nobody", "refuses the credentials.*ProfileNotFound"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "cannot reach the store.*127.0.0.1:1.*AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "minio:9000", "AWS_ENDPOINT_URL must have the form"),
    ],
)
def test_make_folder_names_the_wrong_variable_and_no_secret(
    folder: str, use: pytest.MonkeyPatch, variable: str, value: str | None, message: str
) -> None:
    use.setenv("AWS_MAX_ATTEMPTS", "1")
    use.setenv(variable, value) if value else use.delenv(variable)
    with pytest.raises(InputError, match=message) as caught:
        make_writable_folder(folder)
    assert folder in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.usefixtures("environ")
def test_make_folder_never_makes_a_bucket(served: tuple[str, Path]) -> None:
    for act in (make_writable_folder, lambda url: write_bytes(join_url(url, "a"), b"x")):
        with pytest.raises(InputError, match="no bucket for 's3://nosuch/"):
            act("s3://nosuch/clips")
    assert not exists("s3://nosuch/clips")
    assert [path.name for path in served[1].iterdir()] == [BUCKET]


def test_wrong_credentials_are_bad_input_for_every_operation_without_retries(
    folder: str, faults: Faults, use: pytest.MonkeyPatch
) -> None:
    use.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    url = join_url(folder, "a")
    for act in (exists, read_bytes, list_files, remove_tree, read_json):
        with pytest.raises(InputError, match="credentials"):
            act(url)
    with pytest.raises(InputError, match="credentials"):
        write_bytes(url, b"")
    assert faults.done["passed"] <= 8  # one or two requests per operation


def test_answers_403_without_error_document_are_retried(folder: str, faults: Faults) -> None:
    url = join_url(folder, "a")
    faults.next.extend(["403", "403"])
    write_bytes(url, b"0123456789")
    faults.next.extend([None, "403", None, "403"])  # HEAD passes: its 403 is that of wrong credentials
    assert read_bytes(url) == b"0123456789"
    assert faults.done["403"] == 4


def test_video_in_s3_is_downloaded_through_transient_faults_and_rejected_after_three(
    folder: str, faults: Faults, use: pytest.MonkeyPatch
) -> None:
    use.setattr("cluster.sources.download.BACKOFF_S", 0.0)
    source = Source(uri=join_url(folder, "v.mp4"), source_id="v.mp4")
    write_bytes(source.uri, b"x" * 2_000_000)
    for kind in ("403", "503", "drop_before", "cut_body"):
        faults.next.extend([kind, kind])
        with local_copy(source, FetchConfig()) as path:
            assert path.stat().st_size == 2_000_000
    for kind in ("403", "503"):
        faults.next.extend([kind] * 3)
        with pytest.raises(VideoError, match="unreachable"), local_copy(source, FetchConfig()):
            pass
    with pytest.raises(VideoError, match="too_large"), local_copy(source, FetchConfig(max_gb=0.001)):
        pass
    with pytest.raises(VideoError, match="missing"), local_copy(replace(source, uri=f"{folder}/w.mp4"), FetchConfig()):
        pass
    use.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    forget_connections()
    with pytest.raises(InputError, match="refuses the credentials"), local_copy(source, FetchConfig()):
        pass


def test_missing_object_is_not_retried(folder: str, faults: Faults) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(join_url(folder, "missing"))
    assert faults.done["passed"] <= 3


def test_permanent_server_error_is_bad_input(folder: str, faults: Faults) -> None:
    faults.rate, faults.kinds = 1.0, ("500",)  # rclone's answer when its disk is full
    with pytest.raises(InputError, match=r"keeps answering 500.*disk is full"):
        write_bytes(join_url(folder, "a"), b"x")
    assert faults.done["500"] == ATTEMPTS
