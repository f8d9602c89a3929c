"""The label-fraction figure: accuracy against labelled data, and the gain over random weights (paper figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

BASELINE = "random"  # the initialization every gain is taken over

# Okabe and Ito's palette: told apart with any common colour blindness; markers and dashes say the same again.
_STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
_BASELINE_STYLE = ("#D55E00", "s", "--")
_GRAY = "#5f6672"


class AccuracyRow(TypedDict):
    """One run of a sweep: `accuracy` and `fraction` are shares in [0, 1]."""

    init: str
    fraction: float
    seed: int
    accuracy: float


def label_fraction_figure(
    rows: Sequence[AccuracyRow], *, protocol: str, chance: float, labels: dict[str, str] | None = None
) -> Figure:
    """Accuracy against label fraction for every initialization, and beside it the gain over random weights.

    Lines are means over seeds, dots single seeds, bands the lowest to the highest seed. The gain is the paper's figure
    4c, accuracy over the random initialization's, taken seed by seed; its panel is left out without a random run.

    Args:
        rows: runs of the sweep, in any order; repeated (init, fraction, seed) rows, as of several splits, are averaged.
        protocol: what was tested and how, for the axis, e.g. "ucf101-split1_1clip".
        chance: accuracy of guessing, a share in [0, 1].
        labels: init -> its name in the legend.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("label_fraction_figure needs at least one row")
    names = sorted({row["init"] for row in rows}, key=lambda init: (init == BASELINE, init))
    runs = {init: _by_fraction(rows, init) for init in names}
    gains = {init: gain for init in names if init != BASELINE and (gain := _gains(runs[init], runs.get(BASELINE, {})))}
    styles = _styles(names)
    shown = {init: (labels or {}).get(init, init) for init in names}

    figure = Figure(figsize=(9.6, 4.2) if gains else (5.6, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=(1.25, 1)) if gains else [figure.subplots()]
    for init in names:
        _draw_runs(axes[0], runs[init], styles[init], shown[init], scale=100.0)
    axes[0].axhline(chance * 100, color=_GRAY, linewidth=1.2, linestyle=(0, (1, 2)))
    _note(axes[0], chance * 100, f"chance {chance * 100:.3g} %", _GRAY)
    axes[0].set_ylim(*_accuracy_limits(rows, chance))
    axes[0].set_ylabel(f"accuracy, %\n{protocol}")
    axes[0].set_title("Accuracy against labelled data", loc="left", fontsize=11, fontweight="bold")
    axes[0].legend(frameon=False, fontsize=9.5, loc="upper left", handlelength=3.4)
    fractions = sorted({float(row["fraction"]) for row in rows})
    if gains:
        for init, gain in gains.items():
            _draw_runs(axes[1], gain, styles[init], shown[init], scale=1.0)
        axes[1].axhline(1.0, color=_BASELINE_STYLE[0], linewidth=1.2, linestyle="--")
        _note(axes[1], 1.0, shown[BASELINE], _BASELINE_STYLE[0])
        axes[1].set_ylabel(f"accuracy over that of {shown[BASELINE]}")
        axes[1].set_title("Relative gain", loc="left", fontsize=11, fontweight="bold")
        axes[1].margins(y=0.18)
    for panel in axes:
        _dress(panel, fractions)
    caption = "share of the training labels; lines: mean over seeds, dots: seeds, bands: lowest to highest"
    figure.supxlabel(caption, fontsize=9, color=_GRAY)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _by_fraction(rows: Sequence[AccuracyRow], init: str) -> dict[float, dict[int, float]]:
    """fraction -> seed -> accuracy, averaged over rows that repeat a (fraction, seed)."""
    collected: dict[float, dict[int, list[float]]] = {}
    for row in rows:
        if row["init"] == init:
            collected.setdefault(float(row["fraction"]), {}).setdefault(int(row["seed"]), []).append(row["accuracy"])
    return {
        fraction: {seed: float(np.mean(values)) for seed, values in seeds.items()}
        for fraction, seeds in sorted(collected.items())
    }


def _gains(
    runs: dict[float, dict[int, float]], baseline: dict[float, dict[int, float]]
) -> dict[float, dict[int, float]]:
    """fraction -> seed -> accuracy over the baseline's, where both have that run and the baseline is not 0."""
    paired = {
        fraction: {
            seed: accuracy / baseline[fraction][seed]
            for seed, accuracy in seeds.items()
            if baseline.get(fraction, {}).get(seed, 0.0) > 0
        }
        for fraction, seeds in runs.items()
    }
    return {fraction: seeds for fraction, seeds in paired.items() if seeds}


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dashes of each init; the baseline's never change."""
    free = [style for style in _STYLES if style != _BASELINE_STYLE]
    others = [name for name in names if name != BASELINE]
    styles = {name: free[position % len(free)] for position, name in enumerate(others)}
    return {**styles, BASELINE: _BASELINE_STYLE}


def _draw_runs(
    axes: Axes, runs: dict[float, dict[int, float]], style: tuple[str, str, str], label: str, *, scale: float
) -> None:
    colour, marker, dashes = style
    x = np.array(list(runs))
    values = [np.array(list(seeds.values())) * scale for seeds in runs.values()]
    low, mean, high = (np.array([pick(v) for v in values]) for pick in (np.min, np.mean, np.max))
    if any(len(v) > 1 for v in values):
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        dots_x, dots_y = np.repeat(x, [len(v) for v in values]), np.concatenate(values)
        axes.scatter(dots_x, dots_y, s=13, color=colour, marker=marker, alpha=0.45, linewidth=0)
    (line,) = axes.plot(x, mean, color=colour, linestyle=dashes, linewidth=2.0, label=label)
    line.set(marker=marker, markersize=6.5, markeredgecolor="white", markeredgewidth=0.9)


def _note(axes: Axes, y: float, text: str, colour: str) -> None:
    """Small text on the right, just above a horizontal line at `y`."""
    note = axes.annotate(text, (1, y), (-4, 3), ("axes fraction", "data"), "offset points")
    note.set(horizontalalignment="right", verticalalignment="bottom", color=colour, fontsize=9)


def _accuracy_limits(rows: Sequence[AccuracyRow], chance: float) -> tuple[float, float]:
    """From 0, so that heights compare, to a little above the best run; room at the top for the legend."""
    highest = max(max(row["accuracy"] for row in rows), chance)
    return 0.0, min(max(highest * 1.3, 0.05), 1.15) * 100


def _dress(axes: Axes, fractions: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(fractions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _fraction_name(value)))
    axes.set_xlim(min(fractions) / 1.18, max(fractions) * 1.18)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab0ba")
    axes.tick_params(colors="#3a404c", labelsize=9.5)


def _fraction_name(fraction: float) -> str:
    """1/8, 1/4 or 1 where it is one over a whole number, else a percentage."""
    parts = round(1 / fraction)
    if abs(fraction * parts - 1) > 1e-6:
        return f"{fraction:.3g}"
    return "all" if parts == 1 else f"1/{parts}"
