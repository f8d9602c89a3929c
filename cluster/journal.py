"""Answers of a slow service, kept as they come: a job that was killed asks nothing twice.

A journal is a folder of parts, each a file of JSON lines [key, value]. A part is written anew with every answer, which
at a call a second costs a store nothing, and every process begins a part of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cluster import storage
from vgan.errors import BadInput

LINES = 500  # answers in a part


class Journal:
    """What was answered so far, by key. One process at a time may write to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._answers: dict[str, bytes] = {}  # as JSON: two million dicts would not fit
        parts = storage.list_files(url, ".jsonl")
        for part in parts:
            for line in storage.read_bytes(part).splitlines():
                self._keep(line, part)
        self.resumed = len(self._answers)
        self._part = 1 + max((int(p.rpartition("-")[2].removesuffix(".jsonl")) for p in parts), default=-1)
        self._lines: list[bytes] = []

    def _keep(self, line: bytes, part: str) -> None:
        try:
            key, value = json.loads(line)
        except ValueError as fault:
            raise BadInput(f"{part!r} is not a journal of this job: remove it and run the command again") from fault
        self._answers[key] = json.dumps(value).encode()

    def remember(self, key: str, ask: Callable[[], Any]) -> Any:
        """The value kept under a key, else what `ask` gives, which is kept before it is returned. Any JSON."""
        if key not in self._answers:
            value = ask()
            self._lines.append(json.dumps([key, value]).encode() + b"\n")
            storage.write_bytes(storage.join(self.url, f"part-{self._part:06d}.jsonl"), b"".join(self._lines))
            self._answers[key] = json.dumps(value).encode()
            if len(self._lines) == LINES:
                self._part, self._lines = self._part + 1, []
        return json.loads(self._answers[key])
