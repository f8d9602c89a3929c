"""Interactive figures of a sweep, each a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vgan.transfer.accuracy_curves import BASELINE, Point
from vgan.viz.figures import PUBLISHED, format_fraction, init_colors


def label_fraction_page(
    accuracy: Sequence[Point],
    gain: Sequence[Point],
    *,
    protocol: str,
    chance: float,
    remark: str = "",
    published: bool = False,
) -> str:
    """Render paper figures 4b and 4c as an HTML page; arguments as `vgan.viz.figures.label_fraction_figure`."""
    figure = make_subplots(
        1, 2 if gain else 1, subplot_titles=["accuracy, %", f"accuracy relative to {BASELINE}"][: 1 + bool(gain)]
    )
    palette = init_colors([p.init for p in accuracy])
    for column, (points, scale) in enumerate([(accuracy, 100.0), (gain, 1.0)], start=1):
        for init, init_points in groupby(points, key=lambda p: p.init):
            figure.add_trace(_line(list(init_points), init, palette[init], scale, named=column == 1), 1, column)
    figure.add_hline(100 * chance, line_dash="dot", annotation_text=f"chance {100 * chance:.3g} %", row=1, col=1)
    if published:
        for name, value in PUBLISHED.items():
            figure.add_hline(
                value, line_dash="dash", line_color="#c3c8d0", annotation_text=f"published: {name}", row=1, col=1
            )
    fractions = sorted({p.fraction for p in accuracy})
    figure.update_xaxes(
        type="log",
        tickvals=fractions,
        ticktext=[format_fraction(f) for f in fractions],
        title="fraction of the training labels",
    )
    return _page(figure, protocol, remark)


def all_labels_page(
    accuracy: Sequence[Point], *, protocol: str, chance: float, remark: str = "", published: bool = False
) -> str:
    """Render paper figure 4a as an HTML page; arguments as `vgan.viz.figures.all_labels_figure`."""
    points = [p for p in accuracy if p.fraction == 1.0]
    bars = [(p.init, 100 * p.mean, 100 * (p.high - p.mean), 100 * (p.mean - p.low)) for p in points]
    bars += [(f"published: {name}", value, 0.0, 0.0) for name, value in PUBLISHED.items() if published]
    names, values, above, below = zip(*sorted(bars, key=lambda bar: bar[1]), strict=True)
    error = {"type": "data", "array": above, "arrayminus": below}
    figure = go.Figure(go.Bar(x=values, y=names, orientation="h", error_x=error))
    figure.add_vline(100 * chance, line_dash="dot", annotation_text=f"chance {100 * chance:.3g} %")
    figure.update_xaxes(title="accuracy, %, all labels")
    return _page(figure, protocol, remark)


def _line(points: Sequence[Point], init: str, color: str, scale: float, *, named: bool) -> go.Scatter:
    """Return a line of means with error bars; the hover text lists the seeds."""
    error = {
        "type": "data",
        "array": [scale * (p.high - p.mean) for p in points],
        "arrayminus": [scale * (p.mean - p.low) for p in points],
    }
    seeds = [", ".join(f"{scale * value:.3g}" for value in p.seeds) for p in points]
    return go.Scatter(
        x=[p.fraction for p in points],
        y=[scale * p.mean for p in points],
        error_y=error,
        name=init,
        legendgroup=init,
        showlegend=named,
        line={"color": color},
        text=seeds,
        hovertemplate="%{y:.3g}, seeds %{text}",
    )


def _page(figure: go.Figure, protocol: str, remark: str) -> str:
    """Add the title to a figure and return it as an HTML page with plotly's script included."""
    title = " \u00b7 ".join(filter(None, [protocol, "95 % intervals over seeds and test videos", remark]))
    figure.update_layout(title=title, template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
