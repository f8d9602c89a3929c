"""Download errors: final ones reject the video, others end the job so that it can be resumed."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.sources.download import local_copy
from cluster.sources.manifest import Source
from vgan.errors import InputError, VideoError


class Answers(http.server.BaseHTTPRequestHandler):
    """Server that answers /<status> with that status, and /flaky with one failure before the content."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        failing = self.path == "/flaky.mp4" and self.asked.count(self.path) == 1
        name = self.path.strip("/").removesuffix(".mp4")
        status = 503 if failing else int(name) if name.isdigit() else 200
        body = b"bytes of a video"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def source(uri: str) -> Source:
    return Source(uri=uri, source_id="v.mp4")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("cluster.sources.download.BACKOFF_S", 0.0)
    handler = type("Fresh", (Answers,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fetch_of_a_good_url_gives_its_bytes_and_removes_the_copy(url: str) -> None:
    with local_copy(source(f"{url}/good.mp4")) as path:
        assert path.read_bytes() == b"bytes of a video"
    assert not path.exists()


def test_fetch_retries_a_transient_error(url: str) -> None:
    with local_copy(source(f"{url}/flaky.mp4")) as path:
        assert path.read_bytes() == b"bytes of a video"


@pytest.mark.parametrize(("status", "reason"), [(404, "missing"), (403, "http_403"), (410, "http_410")])
def test_fetch_with_a_final_status_rejects_the_video(url: str, status: int, reason: str) -> None:
    with pytest.raises(VideoError) as caught, local_copy(source(f"{url}/{status}.mp4")):
        pass
    assert (caught.value.stage, caught.value.reason) == ("fetch", reason)


@pytest.mark.parametrize("status", [401, 500, 503])
def test_fetch_with_other_errors_ends_the_job_instead_of_rejecting(url: str, status: int) -> None:
    with (
        pytest.raises((OSError, InputError), match=f"failed 3 times|{status}"),
        local_copy(source(f"{url}/{status}.mp4")),
    ):
        pass


def test_fetch_of_a_missing_or_unreadable_local_file_rejects_it(tmp_path: Path) -> None:
    for path, reason in (
        (str(tmp_path / "none.mp4"), "missing"),
        (str(tmp_path), "unreadable"),
        ("/a\0b", "unreadable"),
    ):
        with pytest.raises(VideoError) as caught, local_copy(source(path)):
            pass
        assert caught.value.reason == reason


def test_error_inside_the_block_is_not_treated_as_a_download_error(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(OSError, match="no memory"), local_copy(source(str(tmp_path / "v.mp4"))):
        raise OSError("no memory")
