"""Decoding in a process of its own, so that a crash, a hang or a memory hog costs one video and never the worker.

The child is a new interpreter (never a fork: decoders break in forked processes) running this module. It serves one
request after another: a line of JSON on its stdin, answered by messages on a pipe, which blocks it when the parent is
slow, so at most one frame and a pipe (1 MiB) are in flight. A message is a header (kind, time, two counts) and a body:
"H" ready for work; "B" name of the backend; "F" frame: time, height, width, pixels; "S" time of a frame skipped on the
way to a segment; "P" probe, JSON; "E" error, a JSON triple; "." the end. Nothing the child sends is believed unchecked.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import os
import re
import resource
import select
import signal
import struct
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

import vgan
from vgan.config import DecodeConfig
from vgan.errors import BadVideo
from vgan.video.decode import Frame, Probe, backend_version, frames, probe
from vgan.video.strips import is_strip, probe_strip, strip_frames

HEADER = struct.Struct("<cdII")  # kind, pts_s, then height and width, or bytes of JSON and 0
MAX_FRAME_BYTES = 2**28  # an 8K picture has 100 MB; what claims more than this is garbage
MAX_TEXT_BYTES = 2**16
MAX_STDERR_BYTES = 2**24  # a decoder that complains without end must not fill the disk
PIPE_BYTES = 2**20  # 15 frames of 128x170; 64 KiB, the default, holds not even one: 1.3 to 1.5 times slower
REQUESTS_A_CHILD = 64  # decoders leak: decord 1 to 2 MB in 10 openings
MAX_ADVANCE_S = 1.0  # of video time one message can earn decoding time for: a leap in time is not work
SKIP_REPORT_S = 0.5  # between reports of a child that decodes its way to a segment
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# Of the environment, the child gets these and nothing else: a decoder that was taken over finds no credentials.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "TZ")
ENVIRONMENT_PREFIXES = ("LC_", "DECORD_")
# Every other failure before the first frame is worth a try with the other backend.
FINAL_REASONS = ("no_video_stream", "corrupt", "killed")


class Decoder:
    """Decodes in a process of its own, kept from video to video (starting one takes 0.15 s), killed when it misbehaves.

    Not for use by two threads at once: a request stops the one that is not at its end. After a fork, and in another
    thread (the child dies with the thread that started it), it starts a child anew.

    Args:
        config: deadlines, memory cap, backend, size.
        command: replaces the interpreter call in front of the settings: tests run children that misbehave.
    """

    def __init__(self, config: DecodeConfig, command: list[str] | None = None) -> None:
        self.backend = ""  # name and version of what gave the latest frames
        self._config = config
        self._command = command or [sys.executable, "-P", "-m", "vgan.video.child"]
        self._child: _Child | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child, if there is one. The next request starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def probe(self, path: str | Path) -> Probe:
        """What `decode.probe` says of the file. Raises BadVideo as `frames` does."""
        replies = list(
            self._replies({"do": "probe", "path": os.fspath(path)})
        )  # to the end, so that the child lives on
        if [kind for kind, _ in replies] != [b"P"]:
            raise _garbage("no probe")
        return _checked_probe(replies[0][1])

    def frames(
        self, path: str | Path, start_s: float = 0.0, end_s: float = math.inf, native: bool = False
    ) -> Iterator[Frame]:
        """`decode.frames` with a deadline and a memory cap. Closing the iterator early kills the child.

        The child may keep silent for `config.timeout_s`, and take that long plus `config.time_factor` times the length
        of the video it has given; the time the caller takes between frames does not count. With `backend=auto`, when
        PyAV crashes, hangs, runs out of memory or fails before it gave a frame, decord gets one try in its place.

        Raises:
            BadVideo: what `decode.frames` raises, and stage "decode" with reason timeout, crashed (the child died, or
                sent what no decoder sends), out_of_memory or killed (by someone else: no fault of the video, so it is
                worth another try). When both backends fail, the fault is PyAV's.
            RuntimeError: the child ended in a Python traceback, which is a bug, not a bad video.
        """
        first, *others = ("pyav", "decord") if self._config.backend == "auto" else (self._config.backend,)
        request = {"do": "frames", "path": os.fspath(path), "start_s": start_s, "end_s": end_s, "native": native}
        given = False
        try:
            for frame in self._frames(request | {"backend": first}):
                given = True
                yield frame
            return
        except BadVideo as fault:
            if given or not others or fault.reason in FINAL_REASONS:
                raise
            first_fault = fault
        try:
            for frame in self._frames(request | {"backend": others[0]}):
                given = True
                yield frame
        except BadVideo as fault:
            if given:
                raise
            detail = f"{first_fault.detail}; {others[0]}: {fault.reason} ({fault.detail})"
            raise BadVideo(first_fault.stage, first_fault.reason, detail) from fault

    def _frames(self, request: dict[str, Any]) -> Iterator[Frame]:
        """Frames of one attempt."""
        for kind, body in self._replies(request):
            if kind == b"B":
                self.backend = body
            elif kind == b"F":
                yield body

    def _replies(self, request: dict[str, Any]) -> Iterator[tuple[bytes, Any]]:
        """(kind, body) of each message up to the end. Leaves a child that can serve again, or none."""
        child = self._child = self._ready_child()
        clean = False
        try:
            yield from child.replies(request)
            clean = True
        except _Reported as reported:
            clean = reported.fault.reason != "out_of_memory"
            raise reported.fault from None
        finally:
            if not clean:
                child.stop()

    def _ready_child(self) -> _Child:
        """The child of the last request where it can serve another, else a new one."""
        child = self._child
        if child is not None and child.usable():
            return child
        self.close()
        return _Child(self._command, self._config)


def isolated_frames(path: str | Path, config: DecodeConfig, command: list[str] | None = None) -> Iterator[Frame]:
    """All frames of one file by a `Decoder` of its own, which ends with the iterator."""
    with Decoder(config, command) as decoder:
        yield from decoder.frames(path)


class _Reported(Exception):
    """A fault that the child itself reported: it is well and serves on."""

    def __init__(self, fault: BadVideo) -> None:
        super().__init__(fault)
        self.fault = fault


class _Child:
    """One decoding process, the request it is at, and the time this request has left."""

    def __init__(self, command: list[str], config: DecodeConfig) -> None:
        self._config = config
        self._owner = _owner()
        self._served = 0
        self._busy = False
        self._stopped = False
        self._ready = False  # the child has said so
        self._message_left_s = self._request_left_s = 0.0
        # A file, for a pipe would block a talkative decoder; stop() closes it.
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
        with contextlib.suppress(OSError):  # the user's share of pipe memory is used up
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()  # not select(): a busy worker holds descriptors above 1023
        self._poll.register(self._fd, select.POLLIN)

    def usable(self) -> bool:
        """Whether the next request may go to this child."""
        idle = not self._busy and not self._stopped and self._served < REQUESTS_A_CHILD
        return idle and self._owner == _owner() and self._process.poll() is None

    def stop(self) -> None:
        """Kill the process and let go of its pipes. In a forked copy of the parent, only let go."""
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
        """(kind, body) of each message that answers `request`. Raises _Reported, or BadVideo when the child must go."""
        self._busy = True
        self._served += 1
        self._stderr.truncate(0)
        self._message_left_s = self._request_left_s = self._config.timeout_s
        try:
            if not self._ready:
                self._next_message(b"H")
                self._ready = True
                self._request_left_s = self._config.timeout_s  # starting up is no decoding
            self._send(request)
            latest_s: float | None = None
            while True:
                kind, time_s, body = self._next_message(b"BFSPE.")
                if kind == b".":
                    break
                if kind == b"E":
                    self._busy = False
                    raise _Reported(BadVideo(*body))
                if kind in b"FS":
                    if not math.isfinite(time_s) or (latest_s is not None and time_s <= latest_s):
                        raise _garbage(f"a frame at {time_s} s after one at {latest_s} s")
                    if latest_s is not None:
                        self._request_left_s += self._config.time_factor * min(time_s - latest_s, MAX_ADVANCE_S)
                    latest_s = time_s
                yield kind, body
        except EOFError:
            raise self._death() from None
        self._busy = False

    def _send(self, request: dict[str, Any]) -> None:
        """One line to the child, smaller than a pipe: it never blocks. Raises EOFError when the child is gone."""
        line = json.dumps(request).encode() + b"\n"  # pure ASCII: any file name fits into a line
        try:
            self._requests.write(line)
        except BrokenPipeError:
            raise EOFError from None

    def _next_message(self, kinds: bytes) -> tuple[bytes, float, Any]:
        """(kind, time, body) of the next message, whose kind is among `kinds`."""
        if self._stopped:
            raise RuntimeError("another request took this Decoder while the iterator was open")
        self._message_left_s = self._config.timeout_s
        kind, time_s, first, second = HEADER.unpack(self._read(HEADER.size))
        if kind not in kinds:
            raise _garbage(f"unknown message {kind!r}")
        if kind == b"F":
            num_bytes = first * second * 3
            if not 0 < num_bytes <= MAX_FRAME_BYTES:
                raise _garbage(f"a frame of {first}x{second}")
            image = np.frombuffer(self._read(num_bytes), np.uint8).reshape(first, second, 3)
            return kind, time_s, Frame(time_s, image)
        if kind in b"BPE":
            if first > MAX_TEXT_BYTES:
                raise _garbage(f"a text of {first} bytes")
            return kind, time_s, _checked_text(kind, self._read(first))
        return kind, time_s, None

    def _read(self, num_bytes: int) -> bytearray:
        """Exactly `num_bytes`. Raises EOFError when the child is gone, BadVideo at either deadline."""
        buffer = bytearray(num_bytes)
        view = memoryview(buffer)
        while view:
            left_s = min(self._message_left_s, self._request_left_s)
            began_s = time.monotonic()
            if left_s <= 0 or not self._poll.poll(left_s * 1000):
                raise self._late()
            num_read = os.readv(self._fd, [view])
            if num_read == 0:
                raise EOFError
            view = view[num_read:]
            took_s = time.monotonic() - began_s
            self._message_left_s -= took_s
            self._request_left_s -= took_s
        return buffer

    def _late(self) -> BadVideo:
        """The fault of a child whose time is up."""
        timeout_s, factor = self._config.timeout_s, self._config.time_factor
        if self._message_left_s <= self._request_left_s:
            return BadVideo("decode", "timeout", f"no frame within {timeout_s:g} s")
        return BadVideo("decode", "timeout", f"slower than {timeout_s:g} s and {factor:g} s a second of video")

    def _death(self) -> Exception:
        """What the end of a child that never said goodbye means."""
        try:
            status = self._process.wait(timeout=max(0.1, min(self._message_left_s, self._request_left_s)))
        except subprocess.TimeoutExpired:
            return BadVideo("decode", "timeout", "closed its pipe and did not end")
        if status == -signal.SIGKILL:
            return BadVideo("decode", "killed", "by another process or for want of memory on this machine")
        if status < 0:
            return BadVideo("decode", "crashed", f"signal {-status}")
        self._stderr.seek(0)
        text = self._stderr.read(MAX_STDERR_BYTES).decode(errors="replace").strip()
        if "MemoryError" in text.rpartition("\n")[2]:  # raised outside the decoder, by an import for example
            return BadVideo("decode", "out_of_memory", f"above {self._config.memory_gb:g} GB")
        if self._ready and "Traceback (most recent call last)" not in text:
            return BadVideo("decode", "crashed", f"ended with status {status}")
        return RuntimeError(f"the decoding child ended with status {status}:\n{text[-2000:]}")


def _owner() -> tuple[int, int]:
    """Process and thread: a child belongs to the thread that started it, with which the kernel ends it."""
    return os.getpid(), threading.get_ident()


def _child_environment() -> dict[str, str]:
    """The harmless part of this environment, this very package importable, numeric libraries on one thread."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    root = str(Path(vgan.__file__).resolve().parents[1])  # Ray unpacks the project where only sys.path knows of it
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _garbage(what: str) -> BadVideo:
    """The fault of a child that sent what no decoder sends: its memory cannot be trusted any more."""
    return BadVideo("decode", "crashed", f"the decoding child sent {what}")


def _checked_text(kind: bytes, text: bytearray) -> Any:
    """The JSON of a message: a name (B), three strings (E), or a table (P)."""
    try:
        value = json.loads(text)
    except ValueError:
        raise _garbage("text that is not JSON") from None
    if kind == b"P":
        right = isinstance(value, dict)
    elif kind == b"B":
        right = isinstance(value, str)
    else:
        right = isinstance(value, list) and len(value) == 3 and all(isinstance(each, str) for each in value)
        right = right and value[0] == "decode" and re.fullmatch(r"[a-z0-9_]{1,40}", value[1]) is not None
        value = [*value[:2], value[2].encode(errors="replace").decode()] if right else value  # no lone surrogates
    if not right:
        raise _garbage("text of the wrong form")
    return value


def _checked_probe(table: dict[str, Any]) -> Probe:
    """The child's answer as a Probe."""
    try:
        return Probe(**table)
    except TypeError:
        raise _garbage("a probe of the wrong form") from None


# ---- the child ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Serve requests from stdin until it ends, answering on a private copy of stdout. `arguments`: settings as JSON."""
    config = DecodeConfig(**json.loads(arguments[0]))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no decoder outlives its worker
    limit = int(config.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, not dumped
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_STDERR_BYTES, MAX_STDERR_BYTES))  # stderr is all it writes
    requests, out = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # native libraries print to stdout; that must not land among the frames
    with contextlib.suppress(BrokenPipeError):  # the parent has all it wants, or is gone
        _write(out, b"H")
        for line in iter(requests.readline, b""):
            _serve(out, json.loads(line), config)


def _serve(out: int, request: dict[str, Any], config: DecodeConfig) -> None:
    """Answer one request, with the error or the end last."""
    try:
        if request["do"] == "probe":
            path = request["path"]
            _write_text(out, b"P", asdict(probe_strip(path, config.strip_fps) if is_strip(path) else probe(path)))
        else:
            _serve_frames(out, request, replace(config, backend=request["backend"]))
    except BadVideo as fault:
        _write_text(out, b"E", [fault.stage, fault.reason, fault.detail])
    else:
        _write(out, b".")


def _serve_frames(out: int, request: dict[str, Any], config: DecodeConfig) -> None:
    """Every frame of the segment asked for."""
    reported_s = time.monotonic()

    def report_skip(pts_s: float) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s > SKIP_REPORT_S:
            reported_s = time.monotonic()
            _write(out, b"S", pts_s)

    named = False
    segment = (request["start_s"], request["end_s"], request["native"])
    path, backend = request["path"], config.backend
    given: Iterator[Frame]
    if is_strip(path):
        short_side, backend = None if request["native"] else config.size, "pillow"
        every = strip_frames(path, config.strip_fps, short_side)
        given = (frame for frame in every if request["start_s"] <= frame.pts_s < request["end_s"])
    else:
        given = frames(path, config, *segment, report_skip)
    for frame in given:
        if not named:
            _write_text(out, b"B", backend_version(backend))
            named = True
        height, width = frame.image.shape[:2]
        _write(out, b"F", frame.pts_s, height, width, frame.image.data)


def _write_text(out: int, kind: bytes, value: object) -> None:
    """A message whose body is JSON."""
    body = json.dumps(value).encode()
    _write(out, kind, 0.0, len(body), 0, body)


def _write(
    out: int, kind: bytes, time_s: float = 0.0, first: int = 0, second: int = 0, body: bytes | memoryview = b""
) -> None:
    """One message, in one system call where the pipe takes it whole."""
    header = HEADER.pack(kind, time_s, first, second)
    view = memoryview(body).cast("B")
    num_written = os.writev(out, [header, view])
    if num_written < len(header):  # never seen: a pipe takes 4 KiB or nothing at once
        os.write(out, header[num_written:])
        num_written = len(header)
    view = view[num_written - len(header) :]
    while view:
        view = view[os.write(out, view) :]


if __name__ == "__main__":
    main(sys.argv[1:])
