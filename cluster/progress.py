"""Progress bars that suit a terminal and a job's log alike."""

from __future__ import annotations

import logging
import sys
from typing import Any

import ray.data
from tqdm import tqdm


def progress_bar(total: int, unit: str, desc: str) -> Any:
    """A tqdm bar: redrawn every second on a terminal, a line every ten seconds in a log."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, unit=unit, desc=desc, mininterval=1 if terminal else 10, dynamic_ncols=terminal, ascii=not terminal
    )


def quiet_ray_data() -> None:
    """Leave progress to our own bar: it counts videos where Ray's counts blocks."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that its bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
