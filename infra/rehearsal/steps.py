"""What a rehearsal did, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Steps:
    """What was done, how long it took and how it ended."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)
    failed: bool = False

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time the block, without the steps inside it; what it appends to the list is its outcome."""
        print(f"{time.strftime('%H:%M:%S')}  {name} ...", flush=True)
        started, before, told, outcome = time.monotonic(), self.seconds(), list[str](), "interrupted"
        try:
            yield told
            outcome = "ok" + (f": {'; '.join(told)}" if told else "")
        except Exception as fault:
            outcome = f"FAILED: {fault or type(fault).__name__}"
            raise
        finally:
            inside = self.seconds() - before
            self.rows.append((name, time.monotonic() - started - inside, outcome))
            print(f"          {outcome}", flush=True)

    def seconds(self) -> float:
        """Of all rows."""
        return sum(seconds for _, seconds, _ in self.rows)

    def table(self) -> str:
        """The rows, and their sum."""
        width = max((len(name) for name, _, _ in self.rows), default=0)
        lines = [f"  {name:<{width}}{seconds:8.0f} s   {outcome[:150]}" for name, seconds, outcome in self.rows]
        return "\n".join(["steps", *lines, f"  {'all':<{width}}{self.seconds():8.0f} s"])
