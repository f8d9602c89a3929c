"""Log of the steps of a run: name, duration and result of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class StepLog:
    """Rows of (step, seconds, result)."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)
    failed: bool = False

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time the block, excluding the steps inside it; the notes appended to the list become part of its result."""
        print(f"{time.strftime('%H:%M:%S')}  {name} ...", flush=True)
        started, seconds_before, notes, result = time.monotonic(), self.seconds(), list[str](), "interrupted"
        try:
            yield notes
            result = "ok" + (f": {'; '.join(notes)}" if notes else "")
        except Exception as error:
            result = f"FAILED: {error or type(error).__name__}"
            raise
        finally:
            inner_seconds = self.seconds() - seconds_before
            self.rows.append((name, time.monotonic() - started - inner_seconds, result))
            print(f"          {result}", flush=True)

    def seconds(self) -> float:
        """Return the sum of the durations of all rows."""
        return sum(seconds for _, seconds, _ in self.rows)

    def table(self) -> str:
        """Format the rows and the sum of their durations."""
        width = max((len(name) for name, _, _ in self.rows), default=0)
        lines = [f"  {name:<{width}}{seconds:8.0f} s   {result[:150]}" for name, seconds, result in self.rows]
        return "\n".join(["steps", *lines, f"  {'all':<{width}}{self.seconds():8.0f} s"])
