"""A resource plan as one picture: hours, storage and cost by component."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vgan.viz.figures import figure_png

_COLORS = ("#0072B2", "#009E73", "#E69F00")


def plan_png(panels: Mapping[str, Mapping[str, float]], title: str) -> bytes:
    """Draw one panel of bars per quantity that is not all zero, and return the PNG bytes.

    Args:
        panels: quantity with unit (the axis label) -> component -> amount.
        title: figure title.
    """
    nonzero = {name: values for name, values in panels.items() if any(values.values())}
    figure = Figure(figsize=(4.2 * max(1, len(nonzero)), 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for number, (name, values) in enumerate(nonzero.items(), start=1):
        axes = figure.add_subplot(1, len(nonzero), number)
        bars = axes.barh(list(values), list(values.values()), color=_COLORS[(number - 1) % len(_COLORS)])
        axes.bar_label(bars, [f"{value:,.0f}" for value in values.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)
