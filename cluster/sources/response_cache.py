"""On-disk cache of a slow service's responses, so that a restarted job repeats no request.

A journal is a folder of parts, each a file of JSON lines [key, value]. A part is rewritten with every response, a
negligible load for a store at one call per second, and every process starts its own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cluster.storage.files import list_files, read_bytes, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError

LINES = 500  # responses per part


class ResponseCache:
    """Cache of responses by key. Only one process at a time may write to it.

    Args:
        url: Folder of the cache; its responses are loaded.

    Raises:
        InputError: A part is damaged.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._responses: dict[str, bytes] = {}  # as JSON: two million dicts would not fit in memory
        parts = list_files(url, ".jsonl")
        for part in parts:
            for line in read_bytes(part).splitlines():
                self._load(line, part)
        self.resumed = len(self._responses)
        self._part = 1 + max((int(p.rpartition("-")[2].removesuffix(".jsonl")) for p in parts), default=-1)
        self._lines: list[bytes] = []

    def _load(self, line: bytes, part: str) -> None:
        """Load a line of a part."""
        try:
            key, value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{part!r} is not a journal of this job: remove it and run the command again") from error
        self._responses[key] = json.dumps(value).encode()

    def get_or_fetch(self, key: str, ask: Callable[[], Any]) -> Any:
        """Return the cached value of a key; if there is none, call `ask`, store its value and return it.

        Args:
            key: Identifier of the request.
            ask: Request to the service; its value must be serializable as JSON.
        """
        if key not in self._responses:
            value = ask()
            self._lines.append(json.dumps([key, value]).encode() + b"\n")
            write_bytes(join_url(self.url, f"part-{self._part:06d}.jsonl"), b"".join(self._lines))
            self._responses[key] = json.dumps(value).encode()
            if len(self._lines) == LINES:
                self._part, self._lines = self._part + 1, []
        return json.loads(self._responses[key])
