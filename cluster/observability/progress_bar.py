"""Progress bars."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: float, unit: str, desc: str, bar_format: str | None = None) -> Any:
    """Create a tqdm bar, redrawn every second on a terminal, as a line every ten seconds in a log.

    Args:
        total: value at 100 %.
        unit: unit of `total`.
        desc: text before the bar.
        bar_format: tqdm's format of the line; None: tqdm's default.
    """
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        mininterval=1 if is_terminal else 10,
        dynamic_ncols=is_terminal,
        ascii=not is_terminal,
        bar_format=bar_format,
    )


def silence_ray_data() -> None:
    """Disable Ray Data's progress bars, which count blocks; ours counts videos."""
    import ray.data  # imported here because it takes seconds, which jobs that only list and plan avoid

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # reports that its bars are disabled
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
