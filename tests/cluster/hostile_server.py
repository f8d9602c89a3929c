"""HTTP server that fails in many ways, for tests of downloads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

REDIRECTS = {
    "to-file": "file:///etc/hostname",
    "to-ftp": "ftp://127.0.0.1/x",
    "to-link-local": "http://169.254.169.254/latest/meta-data/",
    "to-itself": "/to-itself.mp4",
    "to-good": "/good.mp4",
}


class HostileServer(ThreadingHTTPServer):
    """Server whose answer to /NAME.mp4 depends on NAME; `files` maps other names to their content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {"good": b"bytes of a video"}
        self.requests: Counter[str] = Counter()
        self.repaired: bytes | None = None  # answer to every request from now on
        self.stopped = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    server: HostileServer

    def do_HEAD(self) -> None:
        self._answer(405)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/").removesuffix(".mp4")
        self.server.requests[name] += 1
        is_first = self.server.requests[name] == 1
        word, _, number = name.partition("-")
        if self.server.repaired:
            self._answer(200, self.server.repaired)
        elif name in self.server.files:
            self._answer(200, self.server.files[name])
        elif name.isdecimal():
            self._answer(int(name), b"an error page")
        elif word == "once":  # once-503: good from the second request on
            self._answer(int(number), b"" if number == "403" else b"busy") if is_first else self._answer(200, b"later")
        elif name == "wait":  # 1 to 2 s, as a date
            date = formatdate(time.time() + 2, usegmt=True)
            self._answer(503, b"slow down", ("Retry-After", date)) if is_first else self._answer(200, b"later")
        elif word == "wait":  # wait-2: 429 with Retry-After
            self._answer(429, b"slow down", ("Retry-After", number)) if is_first else self._answer(200, b"later")
        elif name in REDIRECTS:
            self._answer(302, b"", ("Location", REDIRECTS[name]))
        elif name == "empty403":
            self._answer(403)
        elif name == "short":
            self._start(200, ("Content-Length", "1000"))
            self.wfile.write(b"x" * 10)
        elif name == "stalled":
            self._start(200, ("Content-Length", "1000"))
            self.wfile.write(b"x" * 10)
            self.server.stopped.wait(60)
        elif name == "silent":
            self.server.stopped.wait(60)
        elif name == "drip":
            self._start(200, ("Content-Length", "1000000"))
            self._repeat(b"x", 0.05)
        elif name == "header-drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            self._repeat(b"x", 0.05)
        elif name == "endless":
            self._start(200)
            self._repeat(b"x" * 65536, 0.0)
        elif name == "huge":
            self._start(200, ("Content-Length", str(10**15)))
        elif name == "bomb":
            self._start(200, ("Content-Encoding", "gzip"))
            self.wfile.write(self.server.files["bomb.gz"])
        elif name == "garbage":
            self.wfile.write(b"\x00\xffnot HTTP\r\n\r\n")
        else:
            self.close_connection = True  # disconnected

    def _answer(self, status: int, body: bytes = b"", *headers: tuple[str, str]) -> None:
        self._start(status, ("Content-Length", str(len(body))), *headers)
        self.wfile.write(body)

    def _start(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.flush()

    def _repeat(self, data: bytes, pause_s: float) -> None:
        while not self.server.stopped.wait(pause_s):
            self.wfile.write(data)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """Run a server for the duration of the block."""
    with HostileServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()
