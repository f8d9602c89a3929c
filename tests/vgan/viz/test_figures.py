"""The label-fraction figure shows the rows it was given."""

from __future__ import annotations

from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from vgan.viz.figures import AccuracyRow, figure_png, label_fraction_figure

PROTOCOL = "ucf101-split1_1clip"


def sweep(**accuracies: list[list[float]]) -> list[AccuracyRow]:
    """Rows of inits: accuracies[init][position of fraction][seed]."""
    return [
        {"init": init, "fraction": fraction, "seed": seed, "accuracy": accuracy}
        for init, by_fraction in accuracies.items()
        for fraction, seeds in zip((0.125, 1.0), by_fraction, strict=True)
        for seed, accuracy in enumerate(seeds)
    ]


ROWS = sweep(vgan=[[0.3, 0.5], [0.6, 0.8]], random=[[0.2, 0.25], [0.5, 0.5]])


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """label -> x and y of each labelled line."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): (list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()]) for line in lines}


def test_figure_draws_mean_over_seeds_in_percent_and_gain_seed_by_seed() -> None:
    accuracy, gain = label_fraction_figure(ROWS, protocol=PROTOCOL, chance=0.2).axes
    assert curves(accuracy) == {"vgan": ([0.125, 1.0], [40.0, 70.0]), "random": ([0.125, 1.0], [22.5, 50.0])}
    assert curves(gain) == {"vgan": ([0.125, 1.0], [1.75, 1.4])}  # mean of 0.3/0.2 and 0.5/0.25


def test_figure_shows_single_seeds_and_their_range() -> None:
    accuracy = label_fraction_figure(ROWS, protocol=PROTOCOL, chance=0.2).axes[0]
    bands_and_dots = accuracy.collections
    extents = [np.round(band.get_datalim(accuracy.transData).intervaly, 6).tolist() for band in bands_and_dots[:1]]
    assert extents == [[30.0, 80.0]]
    assert sorted(np.round(bands_and_dots[1].get_offsets()[:, 1], 6)) == [30.0, 50.0, 60.0, 80.0]


def test_figure_names_protocol_and_chance() -> None:
    accuracy = label_fraction_figure(ROWS, protocol=PROTOCOL, chance=0.2).axes[0]
    assert PROTOCOL in accuracy.get_ylabel()
    assert any(text.get_text() == "chance 20 %" for text in accuracy.texts)
    assert any(set(np.asarray(line.get_ydata())) == {20.0} for line in accuracy.get_lines())
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["1/8", "all"]


def test_figure_without_random_runs_has_no_gain_panel() -> None:
    figure = label_fraction_figure(sweep(vgan=[[0.3], [0.6]]), protocol=PROTOCOL, chance=0.2)
    assert len(figure.axes) == 1


def test_figure_gain_skips_seeds_the_baseline_lacks_or_scored_nothing() -> None:
    rows = sweep(vgan=[[0.3, 0.4], [0.6, 0.9]], random=[[0.0, 0.2], [0.5]])
    gain = label_fraction_figure(rows, protocol=PROTOCOL, chance=0.2).axes[1]
    assert curves(gain) == {"vgan": ([0.125, 1.0], [2.0, 1.2])}


def test_figure_png_is_a_picture_and_leaves_pyplot_alone() -> None:
    backend = mpl.get_backend()
    picture = Image.open(BytesIO(figure_png(label_fraction_figure(ROWS, protocol=PROTOCOL, chance=0.2))))
    assert picture.width > 1000
    assert np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 50
    assert mpl.get_backend() == backend


def test_figure_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        label_fraction_figure([], protocol=PROTOCOL, chance=0.2)
