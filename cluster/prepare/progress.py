"""Progress of prepare in hours of source video."""

from __future__ import annotations

from typing import Any

from cluster.observability.progress_bar import progress_bar
from cluster.prepare.work_units import WorkUnitTable


class SourceHours:
    """Progress of prepare in hours of source video, with speed (as a multiple of real time) and remaining time.

    If durations of sources are unknown, the total is estimated from the sources decoded so far: by bytes if the sizes
    are known, else by number of units. Units committed by earlier runs do not count.

    Args:
        units: Units to process in this run.
    """

    def __init__(self, units: WorkUnitTable) -> None:
        total_s, unknown = units.total("duration_s")
        self._total_s = None if unknown else total_s
        self._num_units = len(units)
        self._total_bytes, _ = units.total("bytes")
        self._clips = self._windows = self._units = 0
        self._done_s = self._done_bytes = 0.0
        self._bar = progress_bar(
            total=max(1e-6, (self._total_s or 0) / 3600),
            unit="h",
            desc="prepare",
            bar_format="{desc}: {percentage:3.0f}% {bar:20} {n:.3f} of {total:.3f} h of video "
            "[{elapsed}<{remaining}{postfix}]",
        )

    def __enter__(self) -> SourceHours:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, row: dict[str, Any]) -> None:
        """Count one finished unit.

        Args:
            row: Number of `clips` and `windows`, seconds of source video `source_s`, size of the source in `bytes`.
        """
        self._units += 1
        self._clips, self._windows = self._clips + row["clips"], self._windows + row["windows"]
        self._done_s, self._done_bytes = self._done_s + row["source_s"], self._done_bytes + row["bytes"]
        if self._total_s is None:
            fraction = self._done_bytes / self._total_bytes if self._done_bytes else self._units / self._num_units
            self._bar.total = self._done_s / 3600 / min(1.0, fraction)
        done_h = self._bar.n + row["source_s"] / 3600
        self._bar.total = max(self._bar.total, done_h)  # declared durations may be wrong, and sums are rounded
        speed = self._done_s / max(1e-3, self._bar.format_dict["elapsed"])
        self._bar.set_postfix_str(
            f"{speed:.1f}x real time, {self._units} videos, {self._clips} clips of {self._windows} windows",
            refresh=False,
        )
        self._bar.update(row["source_s"] / 3600)
