"""Download faults: each becomes a reject, final or to be retried; only faults that all videos have end the job."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from hostile_server import HostileServer, hostile_server

from cluster.sources.config import FetchConfig
from cluster.sources.download import HostPauses, local_copy, process_host_pauses
from cluster.sources.fetch_errors import final_error, is_worth_retrying
from cluster.sources.http_client import _private_socket, _public_socket
from cluster.sources.manifest import Source, list_folder
from vgan.errors import InputError, VideoError

FETCH = FetchConfig(idle_s=1.0, total_s=20.0, max_gb=0.001, max_pause_s=3.0, private_addresses=True)


def source(uri: str) -> Source:
    return Source(uri=uri, source_id="v.mp4")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr("cluster.sources.download.BACKOFF_S", 0.0)
    process_host_pauses.cache_clear()
    with hostile_server() as running:
        yield running


def error_of(uri: str, fetch: FetchConfig = FETCH) -> VideoError:
    """Return the error of a download, which must leave no file."""
    with pytest.raises(VideoError) as caught, local_copy(source(uri), fetch):
        pass
    assert caught.value.stage == "fetch"
    return caught.value


def test_fetch_of_a_good_url_gives_its_bytes_and_removes_the_copy(server: HostileServer) -> None:
    with local_copy(source(f"{server.url}/good.mp4"), FETCH) as path:
        assert path.read_bytes() == b"bytes of a video"
    assert not path.exists()


@pytest.mark.parametrize("status", [403, 408, 429, 500, 502, 503])
def test_fetch_retries_a_transient_status(server: HostileServer, status: int) -> None:
    with local_copy(source(f"{server.url}/once-{status}.mp4"), FETCH) as path:
        assert path.read_bytes() == b"later"
    assert server.requests[f"once-{status}"] == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [("404", "missing"), ("403", "http_403"), ("empty403", "http_403"), ("410", "http_410"), ("451", "http_451")],
)
def test_fetch_with_a_final_status_rejects_the_video(server: HostileServer, name: str, reason: str) -> None:
    assert error_of(f"{server.url}/{name}.mp4").reason == reason
    assert server.requests[name] == (3 if name == "empty403" else 1)


@pytest.mark.parametrize(
    ("name", "requests"),
    [*((status, 1) for status in (400, 401, 405, 406, 416, 501)), *((s, 3) for s in (408, 429, 500, 502, 503))],
)
def test_fetch_with_another_error_status_is_unreachable(server: HostileServer, name: int, requests: int) -> None:
    error = error_of(f"{server.url}/{name}.mp4")
    assert error.reason == "unreachable"
    assert error.detail.startswith(f"status {name} ")
    assert server.requests[str(name)] == requests


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("short", "short body"),
        ("disconnected", "Server disconnected"),
        ("garbage", "status 400"),
        ("to-file", "redirect to file:///etc/hostname"),
        ("to-ftp", "redirect to ftp:"),
        ("to-itself", "too many redirects"),
    ],
)
def test_fetch_from_a_broken_server_is_unreachable(server: HostileServer, name: str, detail: str) -> None:
    error = error_of(f"{server.url}/{name}.mp4")
    assert error.reason == "unreachable"
    assert error.detail.startswith(detail)
    assert "\n" not in error.detail


@pytest.mark.parametrize("name", ["stalled", "silent", "drip", "header-drip"])
def test_fetch_from_a_slow_server_ends_after_idle_s(server: HostileServer, name: str) -> None:
    started = time.monotonic()
    error = error_of(f"{server.url}/{name}.mp4", replace(FETCH, attempts=1))
    assert (error.reason, error.detail) == (
        "unreachable",
        "stalled: less than 1 kB per second for fetch.idle_s=1",
    )
    assert time.monotonic() - started < 3


def test_fetch_attempts_end_after_total_s(server: HostileServer) -> None:
    started = time.monotonic()
    error = error_of(f"{server.url}/silent.mp4", replace(FETCH, attempts=100, total_s=1.5))
    assert error.reason == "unreachable"
    assert "total_s=1.5" in error.detail
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("name", ["endless", "huge", "bomb"])
def test_fetch_of_a_file_above_max_gb_is_too_large(server: HostileServer, name: str) -> None:
    server.files["bomb.gz"] = gzip.compress(bytes(30_000_000), 1)
    error = error_of(f"{server.url}/{name}.mp4")
    assert (error.reason, error.detail) == ("too_large", "more than fetch.max_gb=0.001")
    assert server.requests[name] == 1


def test_fetch_from_a_closed_port_or_unknown_host_or_without_tls_is_unreachable(server: HostileServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for uri in (
        f"http://127.0.0.1:{port}/a.mp4",
        "http://nosuchhost.invalid/a.mp4",
        server.url.replace("http:", "https:"),
    ):
        error = error_of(uri)
        assert error.reason == "unreachable"
        assert error.detail.startswith("Cannot connect to host")


@pytest.mark.parametrize(
    "uri", ["zip://a.mp4::http://127.0.0.1/a.zip", "ftp://127.0.0.1/a.mp4", "s3://a::b", "http://[::1", "data://x,y"]
)
def test_fetch_of_a_url_that_is_not_permitted_is_invalid(uri: str) -> None:
    assert error_of(uri).reason == "invalid_url"


def test_fetch_follows_redirects_but_never_to_a_link_local_address(server: HostileServer) -> None:
    with local_copy(source(f"{server.url}/to-good.mp4"), FETCH) as path:
        assert path.read_bytes() == b"bytes of a video"
    assert error_of(f"{server.url}/to-link-local.mp4").reason == "private_address"
    assert error_of("http://[::ffff:169.254.169.254]/").reason == "private_address"


def test_fetch_from_a_private_address_needs_the_setting(server: HostileServer) -> None:
    strict = replace(FETCH, private_addresses=False)
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"):
        error = error_of(f"http://{host}:{server.server_port}/good.mp4", strict)
        assert (error.reason, error.detail) == ("private_address", "permitted by fetch.private_addresses=true")
    assert not server.requests


def test_sockets_are_created_for_permitted_addresses_only() -> None:
    def info(address: str) -> tuple[int, int, int, str, tuple[str, int]]:
        return (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80))

    for address in ("10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "0.0.0.0", "::1", "fd00:ec2::254"):
        _private_socket(info(address)).close()
        with pytest.raises(VideoError):
            _public_socket(info(address))
    for address in ("169.254.169.254", "fe80::1%lo", "::ffff:169.254.1.1"):
        with pytest.raises(VideoError):
            _private_socket(info(address))
    _public_socket(info("8.8.8.8")).close()


@pytest.mark.parametrize(("name", "pause_s"), [("wait-1", 1.0), ("wait", 0.9)])
def test_fetch_waits_as_long_as_the_host_requests(server: HostileServer, name: str, pause_s: float) -> None:
    started = time.monotonic()
    with local_copy(source(f"{server.url}/{name}.mp4"), FETCH) as path:
        assert path.read_bytes() == b"later"
    assert time.monotonic() - started >= pause_s


@pytest.mark.parametrize("attempts", [1, 3])
def test_fetch_leaves_a_host_alone_that_requests_a_long_pause(server: HostileServer, attempts: int) -> None:
    for name in ("wait-3600", "good"):
        error = error_of(f"{server.url}/{name}.mp4", replace(FETCH, attempts=attempts))
        assert error.reason == "unreachable"
    assert "longer pause" in error.detail
    assert server.requests == {"wait-3600": 1}


def test_host_pauses_keep_the_longest_request_until_it_has_passed() -> None:
    pauses = HostPauses()
    pauses.request("a", 60)
    pauses.request("a", 0)
    pauses.request("b", 0.01)
    assert 59 < pauses.remaining_s("a") <= 60
    time.sleep(0.02)
    assert pauses.remaining_s("b") == pauses.remaining_s("c") == 0


def test_fetch_with_a_password_shows_it_nowhere(server: HostileServer) -> None:
    for name in ("500", "404"):
        assert "secret" not in str(error_of(f"http://me:secret@127.0.0.1:{server.server_port}/{name}.mp4"))


def test_fetch_of_a_changed_size_or_version_rejects_it(server: HostileServer) -> None:
    for listed in ({"bytes": 3}, {"bytes": 17}):
        with (
            pytest.raises(VideoError, match="changed"),
            local_copy(replace(source(f"{server.url}/good.mp4"), **listed), FETCH),
        ):
            pass
    with local_copy(replace(source(f"{server.url}/good.mp4"), bytes=16, version="etag:1"), FETCH):
        pass  # the server no longer reports versions


def test_fetch_of_a_missing_or_unreadable_local_file_rejects_it(tmp_path: Path) -> None:
    for path, reason in (
        (str(tmp_path / "none.mp4"), "missing"),
        (str(tmp_path), "unreadable"),
        ("/a\0b", "unreadable"),
    ):
        assert error_of(path).reason == reason


def test_videos_listed_through_symbolic_links_are_read(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "subset").mkdir()
    target, link = tmp_path / "videos" / "clip.mp4", tmp_path / "subset" / "clip.mp4"
    target.write_bytes(b"video")
    os.utime(target, (1.0, 1.0))  # the link is newer
    link.symlink_to(target)
    (listed,) = list_folder(str(tmp_path / "subset"))[0]
    assert listed.bytes == 5
    with local_copy(listed, FetchConfig()) as path:
        assert Path(path).read_bytes() == b"video"


def test_error_inside_the_block_is_not_treated_as_a_download_error(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(OSError, match="no memory"), local_copy(source(str(tmp_path / "v.mp4")), FETCH):
        raise OSError("no memory")


def s3_error(code: str, status: int, operation: str = "GetObject") -> PermissionError:
    """Build an error as s3fs raises it."""
    response = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = PermissionError(errno.EACCES, "Access Denied")
    error.__cause__ = ClientError(response, operation)  # type: ignore[arg-type]
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (s3_error("SlowDown", 503), True),
        (s3_error("403", 403), True),  # no error document
        (s3_error("403", 403, "HeadObject"), False),
        (s3_error("AccessDenied", 403), False),
        (s3_error("InvalidAccessKeyId", 403), False),
        (FileNotFoundError("a"), False),
        (aiohttp.InvalidURL("a"), False),
    ],
)
def test_errors_of_stores_worth_retrying(error: Exception, again: bool) -> None:
    assert is_worth_retrying(error) == again


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (s3_error("SlowDown", 503), "unreachable"),
        (s3_error("AccessDenied", 403), "unreachable"),  # this object's or bucket's permissions
        (s3_error("InvalidAccessKeyId", 403), "refuses the credentials"),  # the job's
        (s3_error("ExpiredToken", 400), "refuses the credentials"),
        (NoCredentialsError(), "refuses the credentials"),
        (ValueError("Invalid endpoint: x"), "AWS_ENDPOINT_URL must have the form"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left to write"),
        (ConnectionRefusedError("refused"), "unreachable"),
        (FileNotFoundError("a"), "missing"),
    ],
)
def test_errors_of_stores_reject_a_video_unless_all_videos_have_them(error: Exception, expected: str) -> None:
    result = final_error(error, "s3://bucket/a.mp4")
    if " " in expected:
        assert isinstance(result, InputError)
        assert expected in str(result)
    else:
        assert isinstance(result, VideoError)
        assert result.reason == expected
