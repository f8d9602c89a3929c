"""Decoding in a process of its own, so that a crash, a hang or a memory hog costs one video and never the worker.

The child is a new interpreter (never a fork: decoders break in forked processes) running this module. It writes
messages to a pipe and blocks when the parent is slow, so at most one frame and a pipe's 64 KiB are in flight. A message
is a one-byte kind followed by: "F" frame, pts and shape and pixels; "E" error, a JSON triple; "." the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

import vgan
from vgan.config import DecodeConfig
from vgan.errors import BadVideo
from vgan.video.decode import Frame, frames

FRAME_HEADER = struct.Struct("<dII")  # pts_s, height, width
ERROR_HEADER = struct.Struct("<I")  # bytes of JSON
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def isolated_frames(path: str | Path, config: DecodeConfig, command: list[str] | None = None) -> Iterator[Frame]:
    """`decode.frames` from a child process with a deadline for each message and a memory cap.

    Closing the iterator kills the child at once. `command` replaces the interpreter call in front of the arguments
    (settings as JSON, "--", path): the tests use it to run children that misbehave.

    Raises:
        BadVideo: what `decode.frames` raises, and stage "decode" with reason timeout (nothing came for
            `config.timeout_s`), crashed (the child died of a signal) or out_of_memory.
        RuntimeError: the child ended in a Python traceback, which is a bug, not a bad video.
    """
    command = command or [sys.executable, "-P", "-m", "vgan.video.child"]
    with tempfile.TemporaryFile() as stderr:  # a pipe would block a talkative decoder
        child = subprocess.Popen(
            [*command, json.dumps(asdict(config)), "--", os.fspath(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_child_environment(),
            bufsize=0,
        )
        assert child.stdout is not None
        try:
            pipe = _DeadlinePipe(child.stdout, config.timeout_s)
            while (frame := _next_frame(pipe)) is not None:
                yield frame
        except EOFError:
            raise _death(child, stderr, config) from None
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _child_environment() -> dict[str, str]:
    """This process's environment, with this very package importable and the numeric libraries on one thread."""
    root = str(Path(vgan.__file__).resolve().parents[1])  # Ray unpacks the project where only sys.path knows of it
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _DeadlinePipe:
    """Exact reads from a child's stdout; each message must be complete within `timeout_s`."""

    def __init__(self, stream: IO[bytes], timeout_s: float) -> None:
        self._fd = stream.fileno()
        self._timeout_s = timeout_s
        self._poll = select.poll()  # not select(): a busy worker holds descriptors above 1023
        self._poll.register(self._fd, select.POLLIN)
        self._deadline = 0.0

    def start_message(self) -> None:
        """Give the next message its full time."""
        self._deadline = time.monotonic() + self._timeout_s

    def read(self, num_bytes: int) -> bytearray:
        """Exactly `num_bytes`. Raises EOFError when the child is gone, BadVideo at the deadline."""
        buffer = bytearray(num_bytes)
        view = memoryview(buffer)
        while view:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or not self._poll.poll(left_s * 1000):
                raise BadVideo("decode", "timeout", f"no frame within {self._timeout_s:g} s")
            num_read = os.readv(self._fd, [view])
            if num_read == 0:
                raise EOFError
            view = view[num_read:]
        return buffer


def _next_frame(pipe: _DeadlinePipe) -> Frame | None:
    """The next frame, None at the end of the video. Raises the BadVideo the child reports."""
    pipe.start_message()
    kind = bytes(pipe.read(1))
    if kind == b"F":
        pts_s, height, width = FRAME_HEADER.unpack(pipe.read(FRAME_HEADER.size))
        return Frame(pts_s, np.frombuffer(pipe.read(height * width * 3), np.uint8).reshape(height, width, 3))
    if kind == b"E":
        (num_bytes,) = ERROR_HEADER.unpack(pipe.read(ERROR_HEADER.size))
        raise BadVideo(*json.loads(pipe.read(num_bytes)))
    assert kind == b".", f"unknown message {kind!r} from the decoding child"
    return None


def _death(child: subprocess.Popen[bytes], stderr: IO[bytes], config: DecodeConfig) -> Exception:
    """What the end of a child that never said goodbye means."""
    try:
        status = child.wait(timeout=config.timeout_s)
    except subprocess.TimeoutExpired:
        return BadVideo("decode", "timeout", "closed its pipe and did not end")
    if status < 0:
        return BadVideo("decode", "crashed", f"signal {-status}")
    stderr.seek(0)
    text = stderr.read().decode(errors="replace").strip()
    if "MemoryError" in text.rpartition("\n")[2]:  # raised outside the decoder, by an import for example
        return BadVideo("decode", "out_of_memory", f"above {config.memory_gb:g} GB")
    return RuntimeError(f"the decoding child ended with status {status}:\n{text[-2000:]}")


def main(arguments: list[str]) -> None:
    """The child: decode `arguments` (settings as JSON, "--", path) to a private copy of stdout."""
    settings, _, path = arguments
    config = DecodeConfig(**json.loads(settings))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no decoder outlives its worker
    limit = int(config.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, not dumped
    with os.fdopen(os.dup(1), "wb", buffering=0) as pipe:
        os.dup2(2, 1)  # native libraries print to stdout; that must not land among the frames
        with contextlib.suppress(BrokenPipeError):  # the parent has all it wants, or is gone
            _send(pipe, path, config)


def _send(pipe: BinaryIO, path: str, config: DecodeConfig) -> None:
    """Write every frame of `path`, then the error or the end."""
    try:
        for frame in frames(path, config):
            _write(pipe, b"F" + FRAME_HEADER.pack(frame.pts_s, *frame.image.shape[:2]))
            _write(pipe, frame.image.data)
    except BadVideo as fault:
        message = json.dumps([fault.stage, fault.reason, fault.detail]).encode()
        _write(pipe, b"E" + ERROR_HEADER.pack(len(message)) + message)
    else:
        _write(pipe, b".")


def _write(pipe: BinaryIO, data: bytes | memoryview) -> None:
    """All of `data`: a raw pipe may take only part of it at a time."""
    view = memoryview(data).cast("B")
    while view:
        view = view[pipe.write(view) :]


if __name__ == "__main__":
    main(sys.argv[1:])
