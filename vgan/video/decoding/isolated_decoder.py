"""Isolated decoding in a child process: a crash, hang or memory leak of a decoder costs one video, not the worker.

The child is a new interpreter (not a fork: decoders fail in forked processes) that runs this module. It serves requests
one at a time: a line of JSON on its stdin, answered by messages on a pipe (`decoder_messages`), which the parent
validates. The pipe blocks the child when the parent is slow, so at most one frame and one pipe buffer (1 MiB) are in
flight.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vgan.errors import VideoError
from vgan.records import Reject
from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import Frame, Treatment, VideoMetadata, backend_version, frames, probe_video
from vgan.video.decoding.decoder_messages import (
    HEADER,
    MAX_FRAME_BYTES,
    MAX_TEXT_BYTES,
    parse_probe,
    parse_text,
    protocol_error,
    write_message,
    write_text,
)
from vgan.video.image_strips import is_strip, probe_strip, strip_frames

MAX_STDERR_BYTES = 2**24  # limits the disk space that a decoder's error messages can take
PIPE_BYTES = 2**20  # 15 frames of 128x170; the default of 64 KiB holds less than one: 1.3 to 1.5 times slower
REQUESTS_A_CHILD = 64  # requests before a restart; decoders leak memory: decord 1 to 2 MB in 10 openings
MAX_ADVANCE_S = 1.0  # maximum video time per message that extends the deadline: a jump in time is not work
SKIP_REPORT_S = 0.5  # interval between progress messages while the child decodes up to a segment
MAX_DAMAGES = 1000  # reported per request; a file with damage in every group of pictures has one per second
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# The child gets only these environment variables, so that a compromised decoder cannot read credentials.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "TZ")
ENVIRONMENT_PREFIXES = ("LC_", "DECORD_")
# After any other failure before the first frame the other backend is tried.
FINAL_REASONS = ("no_video_stream", "corrupt", "killed")


class Decoder:
    """Decoder in a child process, which is reused for the next video (a start takes 0.15 s) and killed after a failure.

    Not thread-safe: a new request ends an unfinished one. After a fork, and in another thread (the child ends with the
    thread that started it), a new child is started.

    Args:
        config: deadlines, memory limit, backend, frame size.
        command: command line of the child, without the settings, instead of the interpreter and this module (for tests
            of failing children).
    """

    def __init__(self, config: DecodeConfig, command: list[str] | None = None) -> None:
        self.backend = ""  # name and version of the backend of the latest frames
        self.treatment = Treatment()  # of the latest frames
        self.damages: list[Reject] = []  # in the latest frames, complete once they are read to the end
        self._config = config
        self._command = command or [sys.executable, "-P", "-m", "vgan.video.decoding.isolated_decoder"]
        self._child: _DecoderProcess | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child, if any. The next request starts a new one."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def probe(self, path: str | Path) -> VideoMetadata:
        """Read the header and the first frame of a file (`decode.probe`).

        Raises:
            VideoError: as `frames`.
        """
        # Read to the end, which keeps the child usable.
        replies = list(self._replies({"do": "probe", "path": os.fspath(path)}))
        if [type_ for type_, _ in replies] != [b"P"]:
            raise protocol_error("no probe")
        return parse_probe(replies[0][1])

    def frames(
        self, path: str | Path, start_s: float = 0.0, end_s: float = math.inf, native: bool = False
    ) -> Iterator[Frame]:
        """Decode frames as `decode.frames`, with deadlines and a memory limit.

        Closing the iterator early kills the child. The child must send a message at least every `config.timeout_s`
        seconds. A request may take that time plus `config.timeout_per_video_second` times the duration of the
        video decoded so far; time spent by the caller between frames does not count. With `backend=auto`, if PyAV
        crashes, hangs, runs out of memory or fails before its first frame, decord is tried once.

        Raises:
            VideoError: as `decode.frames`; also stage "decode" with reason timeout, crashed (the child died, or sent an
                invalid message), out_of_memory or killed (by another process, so the video may be retried). If both
                backends fail, stage and reason are those of PyAV.
            RuntimeError: the child ended with a Python traceback, which is a bug, not a bad video.
        """
        first, *others = ("pyav", "decord") if self._config.backend == "auto" else (self._config.backend,)
        request = {"do": "frames", "path": os.fspath(path), "start_s": start_s, "end_s": end_s, "native": native}
        started = False
        try:
            for frame in self._frames(request | {"backend": first}):
                started = True
                yield frame
            return
        except VideoError as error:
            if started or not others or error.reason in FINAL_REASONS:
                raise
            first_error = error
        try:
            for frame in self._frames(request | {"backend": others[0]}):
                started = True
                yield frame
        except VideoError as error:
            if started:
                raise
            detail = f"{first_error.detail}; {others[0]}: {error.reason} ({error.detail})"
            raise VideoError(first_error.stage, first_error.reason, detail) from error

    def _frames(self, request: dict[str, Any]) -> Iterator[Frame]:
        """Yield the frames of one request to one backend."""
        self.treatment, self.damages = Treatment(), []
        for type_, body in self._replies(request):
            if type_ == b"B":
                self.backend = body
            elif type_ == b"T":
                self.treatment = body
            elif type_ == b"D" and len(self.damages) < MAX_DAMAGES:
                self.damages.append(body)
            elif type_ == b"F":
                yield body

    def _replies(self, request: dict[str, Any]) -> Iterator[tuple[bytes, Any]]:
        """Yield (type, body) of each message of an answer; then the child is ready for the next request, or stopped."""
        child = self._child = self._ready_child()
        clean = False
        try:
            yield from child.replies(request)
            clean = True
        except _ReportedError as report:
            clean = report.error.reason != "out_of_memory"
            raise report.error from None
        finally:
            if not clean:
                child.stop()

    def _ready_child(self) -> _DecoderProcess:
        """Return the child of the last request if it is usable, else a new one."""
        child = self._child
        if child is not None and child.usable():
            return child
        self.close()
        return _DecoderProcess(self._command, self._config)


class _ReportedError(Exception):
    """Error that the child itself reported; the child remains usable."""

    def __init__(self, error: VideoError) -> None:
        super().__init__(error)
        self.error = error


class _DecoderProcess:
    """A decoding process, its current request and the remaining time of that request."""

    def __init__(self, command: list[str], config: DecodeConfig) -> None:
        self._config = config
        self._owner = _owner()
        self._served = 0
        self._busy = False
        self._stopped = False
        self._ready = False  # the child has sent "H"
        self._message_remaining_s = self._request_remaining_s = 0.0
        self._run = 0  # of the next frame
        # A file, because a full pipe would block a decoder that prints a lot; stop() closes it.
        self._stderr = tempfile.TemporaryFile("ab+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(config))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_child_environment(),
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._messages = self._process.stdin, self._process.stdout
        self._fd = self._messages.fileno()
        with contextlib.suppress(OSError):  # the user's limit of pipe memory is reached
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()  # select() does not take descriptors above 1023, which a busy worker has
        self._poll.register(self._fd, select.POLLIN)

    def usable(self) -> bool:
        """Return True if this child can take the next request."""
        idle = not self._busy and not self._stopped and self._served < REQUESTS_A_CHILD
        return idle and self._owner == _owner() and self._process.poll() is None

    def stop(self) -> None:
        """Kill the process and close its pipes. In a forked copy of the parent, only close the pipes."""
        if self._stopped:
            return
        self._stopped = True
        if self._owner[0] == os.getpid():
            self._process.kill()
            self._process.wait()
        self._requests.close()
        self._messages.close()
        self._stderr.close()

    def replies(self, request: dict[str, Any]) -> Iterator[tuple[bytes, Any]]:
        """Send `request` and yield (type, body) of each message of the answer.

        Raises:
            _Reported: the child reported an error and remains usable.
            VideoError: the child failed and must be stopped.
        """
        self._busy = True
        self._served += 1
        self._stderr.truncate(0)
        self._message_remaining_s = self._request_remaining_s = self._config.timeout_s
        try:
            if not self._ready:
                self._next_message(b"H")
                self._ready = True
                self._request_remaining_s = self._config.timeout_s  # start-up does not count as decoding time
            self._send(request)
            latest_s: float | None = None
            self._run = 0
            while True:
                type_, time_s, body = self._next_message(b"BFSRTDPE.")
                if type_ == b".":
                    break
                if type_ == b"E":
                    self._busy = False
                    raise _ReportedError(VideoError(*body))
                if type_ in b"FS":
                    if not math.isfinite(time_s) or (latest_s is not None and time_s <= latest_s):
                        raise protocol_error(f"a frame at {time_s} s after one at {latest_s} s")
                    if latest_s is not None:
                        self._request_remaining_s += self._config.timeout_per_video_second * min(
                            time_s - latest_s, MAX_ADVANCE_S
                        )
                    latest_s = time_s
                yield type_, body
        except EOFError:
            raise self._exit_error() from None
        self._busy = False

    def _send(self, request: dict[str, Any]) -> None:
        """Send one line to the child, without blocking because it fits into the pipe. Raises EOFError if it ended."""
        line = json.dumps(request).encode() + b"\n"  # ASCII only, also for file names with line breaks
        try:
            self._requests.write(line)
        except BrokenPipeError:
            raise EOFError from None

    def _next_message(self, types: bytes) -> tuple[bytes, float, Any]:
        """Read the next message, of one of `types`, as (type, time in seconds, body)."""
        if self._stopped:
            raise RuntimeError("another request was made on this Decoder before the iterator was exhausted")
        self._message_remaining_s = self._config.timeout_s
        type_, time_s, first, second = HEADER.unpack(self._read(HEADER.size))
        if type_ not in types:
            raise protocol_error(f"unknown message {type_!r}")
        if type_ == b"F":
            num_bytes = first * second * 3
            if not 0 < num_bytes <= MAX_FRAME_BYTES:
                raise protocol_error(f"a frame of {first}x{second}")
            image = np.frombuffer(self._read(num_bytes), np.uint8).reshape(first, second, 3)
            return type_, time_s, Frame(time_s, image, self._run)
        if type_ == b"R":
            self._run = first
        if type_ in b"BTDPE":
            if first > MAX_TEXT_BYTES:
                raise protocol_error(f"a text of {first} bytes")
            return type_, time_s, parse_text(type_, self._read(first))
        return type_, time_s, None

    def _read(self, num_bytes: int) -> bytearray:
        """Read exactly `num_bytes`. Raises EOFError if the child ended, VideoError at either deadline."""
        buffer = bytearray(num_bytes)
        view = memoryview(buffer)
        while view:
            remaining_s = min(self._message_remaining_s, self._request_remaining_s)
            start_s = time.monotonic()
            if remaining_s <= 0 or not self._poll.poll(remaining_s * 1000):
                raise self._timeout_error()
            num_read = os.readv(self._fd, [view])
            if num_read == 0:
                raise EOFError
            view = view[num_read:]
            elapsed_s = time.monotonic() - start_s
            self._message_remaining_s -= elapsed_s
            self._request_remaining_s -= elapsed_s
        return buffer

    def _timeout_error(self) -> VideoError:
        """Build the error of a child that missed a deadline."""
        timeout_s, factor = self._config.timeout_s, self._config.timeout_per_video_second
        if self._message_remaining_s <= self._request_remaining_s:
            return VideoError("decode", "timeout", f"no frame within {timeout_s:g} s")
        return VideoError("decode", "timeout", f"slower than {timeout_s:g} s and {factor:g} s per second of video")

    def _exit_error(self) -> Exception:
        """Build the error of a child that closed its pipe before the end of the answer, from its exit status."""
        try:
            status = self._process.wait(timeout=max(0.1, min(self._message_remaining_s, self._request_remaining_s)))
        except subprocess.TimeoutExpired:
            return VideoError("decode", "timeout", "closed its pipe but did not exit")
        if status == -signal.SIGKILL:
            return VideoError("decode", "killed", "by another process, or because the machine ran out of memory")
        if status < 0:
            return VideoError("decode", "crashed", f"signal {-status}")
        self._stderr.seek(0)
        text = self._stderr.read(MAX_STDERR_BYTES).decode(errors="replace").strip()
        if "MemoryError" in text.rpartition("\n")[2]:  # raised outside the decoder, for example by an import
            return VideoError("decode", "out_of_memory", f"above {self._config.memory_gb:g} GB")
        if self._ready and "Traceback (most recent call last)" not in text:
            return VideoError("decode", "crashed", f"exited with status {status}")
        return RuntimeError(f"the decoding child exited with status {status}:\n{text[-2000:]}")


def _owner() -> tuple[int, int]:
    """Return the ids of this process and thread: the kernel ends a child with the thread that started it."""
    return os.getpid(), threading.get_ident()


def _child_environment() -> dict[str, str]:
    """Return the environment of a child: allowed variables, path to this package, one thread for numeric libraries."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    root = str(Path(__file__).resolve().parents[2])  # Ray adds the folder of the unpacked project to sys.path only
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return variables | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# ---- the child ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Serve requests from stdin until its end, with answers on a duplicate of stdout.

    Args:
        arguments: one item, the DecodeConfig as JSON.
    """
    config = DecodeConfig(**json.loads(arguments[0]))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the decoder ends with its worker
    limit = int(config.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_STDERR_BYTES, MAX_STDERR_BYTES))  # stderr is the only file it writes
    requests, out = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)  # native libraries print to stdout, which must not mix with the frames
    with contextlib.suppress(BrokenPipeError):  # the parent closed the pipe or ended
        write_message(out, b"H")
        for line in iter(requests.readline, b""):
            _serve(out, json.loads(line), config)


def _serve(out: int, request: dict[str, Any], config: DecodeConfig) -> None:
    """Answer one request; the last message is an error or the end."""
    try:
        if request["do"] == "probe":
            path = request["path"]
            write_text(out, b"P", asdict(probe_strip(path, config.strip_fps) if is_strip(path) else probe_video(path)))
        else:
            _serve_frames(out, request, replace(config, backend=request["backend"]))
    except VideoError as error:
        write_text(out, b"E", [error.stage, error.reason, error.detail])
    else:
        write_message(out, b".")


def _serve_frames(out: int, request: dict[str, Any], config: DecodeConfig) -> None:
    """Send the backend's name and every frame of the requested segment."""
    reported_s = time.monotonic()

    def report_skip(pts_s: float) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s > SKIP_REPORT_S:
            reported_s = time.monotonic()
            write_message(out, b"S", pts_s)

    def report_finding(finding: Reject | Treatment) -> None:
        if isinstance(finding, Treatment):
            write_text(out, b"T", asdict(finding))
        else:
            write_text(out, b"D", [finding.start_s, finding.detail])

    backend_sent, run = False, 0
    segment = (request["start_s"], request["end_s"], request["native"])
    path, backend = request["path"], config.backend
    segment_frames: Iterator[Frame]
    if is_strip(path):
        short_side, backend = None if request["native"] else config.short_side, "pillow"
        all_frames = strip_frames(path, config.strip_fps, short_side)
        segment_frames = (frame for frame in all_frames if request["start_s"] <= frame.pts_s < request["end_s"])
    else:
        segment_frames = frames(path, config, *segment, report_skip, report_finding)
    for frame in segment_frames:
        if not backend_sent:
            write_text(out, b"B", backend_version(backend))
            backend_sent = True
        if frame.run != run:
            run = frame.run
            write_message(out, b"R", 0.0, run)
        height, width = frame.image.shape[:2]
        write_message(out, b"F", frame.pts_s, height, width, frame.image.data)


if __name__ == "__main__":
    main(sys.argv[1:])
