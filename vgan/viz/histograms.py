"""Histograms of a dataset's clip statistics, drawn as one picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vgan.viz.figures import figure_png

BINS = 40
_BLUE = "#0072B2"


def histogram(values: np.ndarray) -> tuple[list[int], list[float]]:
    """Return counts and edges of `BINS` equal bins up to the 99.5th percentile; the last bin includes larger values.

    Args:
        values: (N,) numbers.
    """
    high = float(np.quantile(values, 0.995)) or 1.0
    low = min(float(values.min()), high)
    counts, edges = np.histogram(np.minimum(values, high), BINS, (low, high if high > low else low + 1))
    return counts.tolist(), edges.tolist()


def histogram_png(distributions: Mapping[str, tuple[list[int], list[float]]]) -> bytes:
    """Draw histograms, one panel each, and return the PNG bytes.

    Args:
        distributions: name with unit (the axis label) -> (counts, bin edges).
    """
    columns = min(2, len(distributions))
    rows = -(-len(distributions) // columns)
    figure = Figure(figsize=(5 * columns, 2.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, (counts, edges)) in enumerate(distributions.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BLUE)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)
