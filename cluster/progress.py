"""Progress bars that suit a terminal and a job's log alike."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

from cluster.units import Units


def progress_bar(total: float, unit: str, desc: str) -> Any:
    """A tqdm bar: redrawn every second on a terminal, a line every ten seconds in a log."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, unit=unit, desc=desc, mininterval=1 if terminal else 10, dynamic_ncols=terminal, ascii=not terminal
    )


def quiet_ray_data() -> None:
    """Leave progress to our own bar: it counts videos where Ray's counts blocks."""
    import ray.data  # not by jobs that only list and plan: it takes seconds

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that its bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False


class SourceHours:
    """Progress of prepare in hours of source video, with rate (as a multiple of real time) and time left.

    Where the sources' durations are not known, the total is estimated from what was decoded so far: by bytes where all
    sizes are known, else by number. What earlier runs committed does not count.
    """

    def __init__(self, units: Units) -> None:
        total_s, unknown = units.total("duration_s")
        self._total_s = None if unknown else total_s
        self._num_units = len(units)
        self._total_bytes, _ = units.total("bytes")
        self._clips = self._windows = self._units = 0
        self._done_s = self._done_bytes = 0.0
        self._bar = progress_bar(total=max(1e-6, (self._total_s or 0) / 3600), unit="h", desc="prepare")
        self._bar.bar_format = (
            "{desc}: {percentage:3.0f}% {bar:20} {n:.3f} of {total:.3f} h of video [{elapsed}<{remaining}{postfix}]"
        )

    def __enter__(self) -> SourceHours:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, row: dict[str, Any]) -> None:
        """Count one finished unit: clips, windows, source_s, bytes."""
        self._units += 1
        self._clips, self._windows = self._clips + row["clips"], self._windows + row["windows"]
        self._done_s, self._done_bytes = self._done_s + row["source_s"], self._done_bytes + row["bytes"]
        if self._total_s is None:
            share = self._done_bytes / self._total_bytes if self._done_bytes else self._units / self._num_units
            self._bar.total = self._done_s / 3600 / min(1.0, share)
        done_h = self._bar.n + row["source_s"] / 3600
        self._bar.total = max(self._bar.total, done_h)  # durations are claims, and sums of hours are rounded
        speed = self._done_s / max(1e-3, self._bar.format_dict["elapsed"])
        self._bar.set_postfix_str(
            f"{speed:.1f}x real time, {self._units} videos, {self._clips} of {self._windows} windows kept",
            refresh=False,
        )
        self._bar.update(row["source_s"] / 3600)
