"""Static figures: accuracy and gain against the label fraction (paper figure 4), and temporal power spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from vgan.transfer.accuracy_curves import BASELINE, Point

# The paper's figure 4a: percent on UCF101, mean of its three splits.
PUBLISHED = {
    "ImageNet supervision": 91.4,
    "VGAN + fine tune": 52.1,
    "Shuffle and Learn": 50.2,
    "VGAN + logistic reg": 49.3,
    "Temporal Coherence": 45.4,
    "STIP features": 43.9,
    "VGAN + random init": 36.7,
}
PUBLISHED_OF = {"vgan": "VGAN + fine tune", "logistic": "VGAN + logistic reg", "random": "VGAN + random init"}

# Okabe and Ito's palette, distinguishable with common color blindness; marker and dash pattern are unique as well.
_STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", (0, (6, 1))),
    ("#56B4E9", "P", (0, (3, 1, 1, 1))),
    ("#000000", "X", (0, (1, 1))),
)
Style = tuple[str, str, Any]  # color, marker, dash pattern
_BASELINE_STYLE: Style = ("#D55E00", "s", "--")
_GRAY = "#5f6672"


def label_fraction_figure(
    accuracy: Sequence[Point],
    gain: Sequence[Point],
    *,
    protocol: str,
    chance: float,
    remark: str = "",
    published: bool = False,
    labels: dict[str, str] | None = None,
) -> Figure:
    """Plot accuracy against label fraction (paper figure 4b) beside the gain over random initialization (4c).

    Lines are means, dots single seeds, bands 95 % intervals over seeds and test videos.

    Args:
        accuracy: result of `vgan.transfer.accuracy_curves.accuracies`.
        gain: result of `vgan.transfer.accuracy_curves.relative_gains`; without points, the second panel is omitted.
        protocol: test protocol for the axis label, e.g. "ucf101-split1_1clip".
        chance: accuracy of guessing, in [0, 1].
        remark: note on the sweep, added to the caption.
        published: draw the paper's accuracies, of all 101 classes and the mean of three splits, as lines.
        labels: initialization -> name in the legend.

    Raises:
        ValueError: `accuracy` is empty.
    """
    if not accuracy:
        raise ValueError("label_fraction_figure needs at least one point")
    names = list(dict.fromkeys(point.init for point in accuracy))
    styles = _styles(names)
    legend = {init: (labels or {}).get(init, init) for init in names}

    figure = Figure(figsize=(9.6, 4.2) if gain else (5.6, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=(1.25, 1)) if gain else [figure.subplots()]
    highest = max([chance, *(p.high for p in accuracy)])
    for init, points in groupby(accuracy, key=lambda point: point.init):
        _draw_points(axes[0], list(points), styles[init], legend[init], scale=100.0)
        if published and init in PUBLISHED_OF:
            name, value = PUBLISHED_OF[init], PUBLISHED[PUBLISHED_OF[init]]
            axes[0].axhline(value, color=styles[init][0], linewidth=1.0, linestyle=(0, (5, 4)), alpha=0.7)
            highest = max(highest, value / 100)
            _note(axes[0], value, f"published, all labels, mean of 3 splits: {name} {value:g} %", styles[init][0])
    axes[0].axhline(chance * 100, color=_GRAY, linewidth=1.2, linestyle=(0, (1, 2)))
    _note(axes[0], chance * 100, f"chance {chance * 100:.3g} %", _GRAY)
    axes[0].set_ylim(0.0, min(max(highest * 1.3, 0.05), 1.15) * 100)
    axes[0].set_ylabel(f"accuracy, %\n{protocol}")
    axes[0].set_title("Accuracy against labeled data", loc="left", fontsize=11, fontweight="bold")
    axes[0].legend(frameon=False, fontsize=9.5, loc="upper left", handlelength=3.4)
    if gain:
        for init, points in groupby(gain, key=lambda point: point.init):
            _draw_points(axes[1], list(points), styles[init], legend[init], scale=1.0)
        axes[1].axhline(1.0, color=_BASELINE_STYLE[0], linewidth=1.2, linestyle="--")
        _note(axes[1], 1.0, legend.get(BASELINE, BASELINE), _BASELINE_STYLE[0])
        axes[1].set_ylabel(f"accuracy relative to {legend.get(BASELINE, BASELINE)}")
        axes[1].set_title("Relative gain", loc="left", fontsize=11, fontweight="bold")
        axes[1].margins(y=0.18)
    for panel in axes:
        _format_axes(panel, sorted({point.fraction for point in accuracy}))
    caption = (
        "fraction of the training labels; lines: means, dots: seeds, bands: 95 % intervals over seeds and test videos"
    )
    figure.supxlabel("\n".join(filter(None, [caption, remark])), fontsize=9, color=_GRAY)
    return figure


def all_labels_figure(
    accuracy: Sequence[Point], *, protocol: str, chance: float, remark: str = "", published: bool = False
) -> Figure:
    """Plot accuracy with all labels as bars with 95 % intervals (paper figure 4a), published accuracies in gray.

    Args:
        accuracy: result of `vgan.transfer.accuracy_curves.accuracies`; points at other fractions are ignored.
        protocol: test protocol for the axis label; for several splits it states that the bars are their mean.
        chance: accuracy of guessing, in [0, 1].
        remark: note on the sweep, added below the figure.
        published: add the paper's accuracies, of all 101 classes and the mean of three splits.

    Raises:
        ValueError: no point has label fraction 1.
    """
    points = sorted((p for p in accuracy if p.fraction == 1.0), key=lambda p: p.mean)
    if not points:
        raise ValueError("all_labels_figure needs a point with all labels")
    styles = _styles([p.init for p in points])
    bars: list[tuple[str, float, str, Point | None]] = [(p.init, 100 * p.mean, styles[p.init][0], p) for p in points]
    if published:
        bars += [(f"published: {name}", value, "#c3c8d0", None) for name, value in PUBLISHED.items()]
        bars.sort(key=lambda bar: bar[1])
    figure = Figure(figsize=(6.4, 1.4 + 0.42 * len(bars)), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for position, (_, value, color, point) in enumerate(bars):
        axes.barh(position, value, color=color, height=0.66)
        if point:
            axes.plot([100 * point.low, 100 * point.high], [position, position], color="#20242c", linewidth=1.4)
        end = 100 * point.high if point else value
        axes.annotate(f"{value:.1f}", (end, position), (5, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.axvline(chance * 100, color=_GRAY, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=9.5)
    axes.set_xlim(0, 108)
    axes.set_xlabel(f"accuracy, %, all labels; {protocol}\nlines: 95 % intervals; dotted: chance {chance * 100:.3g} %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if remark:
        figure.supxlabel(remark, fontsize=9, color=_GRAY)
    return figure


def spectrum_figure(spectra: Mapping[str, Sequence[float]], num_frames: int) -> Figure:
    """Plot mean shares of temporal power against frequency, one line per set of clips.

    Args:
        spectra: name of a set of clips -> shares of the power at 1, 2, ... cycles per clip, in [0, 1].
        num_frames: frames per clip.
    """
    figure = Figure(figsize=(7.2, 3.4), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for position, (name, shares) in enumerate(spectra.items()):
        color, marker, dashes = _STYLES[position % len(_STYLES)]
        cycles = np.arange(1, len(shares) + 1) / num_frames
        axes.plot(cycles, shares, color=color, linestyle=dashes, marker=marker, markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("cycles per frame")
    axes.set_ylabel("share of the power")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    return figure


def figure_png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def init_colors(names: Sequence[str]) -> dict[str, str]:
    """Return the hexadecimal color of each initialization, the same in all figures."""
    return {name: color for name, (color, _, _) in _styles(list(dict.fromkeys(names))).items()}


def _styles(names: Sequence[str]) -> dict[str, Style]:
    """Return color, marker and dash pattern of each initialization; the baseline's are fixed."""
    free = [style for style in _STYLES if style != _BASELINE_STYLE]
    others = sorted(name for name in names if name != BASELINE)
    styles = {name: free[position % len(free)] for position, name in enumerate(others)}
    return {**styles, BASELINE: _BASELINE_STYLE}


def _draw_points(axes: Axes, points: Sequence[Point], style: Style, label: str, *, scale: float) -> None:
    """Plot one initialization: band of the interval, dots of the seeds, line of the means."""
    color, marker, dashes = style
    x = np.array([p.fraction for p in points])
    low, mean, high = (scale * np.array([getattr(p, name) for p in points]) for name in ("low", "mean", "high"))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    if any(len(p.seeds) > 1 for p in points):
        dots_x = np.repeat(x, [len(p.seeds) for p in points])
        dots_y = scale * np.concatenate([p.seeds for p in points])
        axes.scatter(dots_x, dots_y, s=13, color=color, marker=marker, alpha=0.45, linewidth=0)
    (line,) = axes.plot(x, mean, color=color, linestyle=dashes, linewidth=2.0, label=label)
    line.set(marker=marker, markersize=6.5, markeredgecolor="white", markeredgewidth=0.9)


def _note(axes: Axes, y: float, text: str, color: str) -> None:
    """Write small text at the right end of the horizontal line at `y`, just above it."""
    note = axes.annotate(text, (1, y), (-4, 3), ("axes fraction", "data"), "offset points")
    note.set(horizontalalignment="right", verticalalignment="bottom", color=color, fontsize=9)


def _format_axes(axes: Axes, fractions: Sequence[float]) -> None:
    """Set a log2 axis of label fractions, tick labels, grid and spines."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(fractions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_fraction(value)))
    axes.set_xlim(min(fractions) / 1.18, max(fractions) * 1.18)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab0ba")
    axes.tick_params(colors="#3a404c", labelsize=9.5)


def format_fraction(fraction: float) -> str:
    """Format a label fraction: "all" for 1, 1/n where it is the inverse of an integer, otherwise a decimal number."""
    parts = round(1 / fraction)
    if abs(fraction * parts - 1) > 1e-6:
        return f"{fraction:.3g}"
    return "all" if parts == 1 else f"1/{parts}"
