"""A plan as one picture: where its hours, its storage and its money go."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vgan.viz.figures import figure_png

_COLORS = ("#0072B2", "#009E73", "#E69F00")


def plan_picture(panels: Mapping[str, Mapping[str, float]], title: str) -> bytes:
    """PNG with a panel of bars for each quantity: its name and unit, and amounts by name."""
    shown = {name: values for name, values in panels.items() if any(values.values())}
    figure = Figure(figsize=(4.2 * max(1, len(shown)), 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for number, (name, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(shown), number)
        bars = axes.barh(list(values), list(values.values()), color=_COLORS[(number - 1) % len(_COLORS)])
        axes.bar_label(bars, [f"{value:,.0f}" for value in values.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)
