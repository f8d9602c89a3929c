"""Figures of a sweep plot all points, intervals and notes."""

from __future__ import annotations

import re
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from vgan.transfer.accuracy_curves import Point
from vgan.viz.figures import PUBLISHED, all_labels_figure, figure_png, label_fraction_figure
from vgan.viz.plotly_figures import all_labels_page, label_fraction_page

PROTOCOL = "ucf101-split1_1clip"


def point(init: str, fraction: float, *seeds: float, spread: float = 0.05) -> Point:
    mean = float(np.mean(seeds))
    return Point(init=init, fraction=fraction, mean=mean, low=mean - spread, high=mean + spread, seeds=seeds)


ACCURACY = [
    point("vgan", 0.125, 0.3, 0.5),
    point("vgan", 1.0, 0.6, 0.8),
    point("random", 0.125, 0.2, 0.25),
    point("random", 1.0, 0.5, 0.5),
]
GAIN = [point("vgan", 0.125, 1.5, 2.0), point("vgan", 1.0, 1.2, 1.6)]
OPTIONS = {"protocol": PROTOCOL, "chance": 0.2}


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return label -> (x, y) of each labeled line."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): (list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()]) for line in lines}


def test_figure_draws_means_in_percent_and_gains() -> None:
    accuracy, gain = label_fraction_figure(ACCURACY, GAIN, **OPTIONS).axes
    assert curves(accuracy) == {"vgan": ([0.125, 1.0], [40.0, 70.0]), "random": ([0.125, 1.0], [22.5, 50.0])}
    assert curves(gain) == {"vgan": ([0.125, 1.0], [1.75, 1.4])}


def test_figure_shows_single_seeds_and_intervals() -> None:
    accuracy = label_fraction_figure(ACCURACY, GAIN, **OPTIONS).axes[0]
    band, dots = accuracy.collections[:2]
    assert np.round(band.get_datalim(accuracy.transData).intervaly, 6).tolist() == [35.0, 75.0]
    assert sorted(np.round(dots.get_offsets()[:, 1], 6)) == [30.0, 50.0, 60.0, 80.0]


def test_figure_names_protocol_chance_and_remark() -> None:
    figure = label_fraction_figure(ACCURACY, GAIN, **OPTIONS, remark="pre-training saw 3 test videos")
    accuracy = figure.axes[0]
    assert PROTOCOL in accuracy.get_ylabel()
    assert any(text.get_text() == "chance 20 %" for text in accuracy.texts)
    assert any(set(np.asarray(line.get_ydata())) == {20.0} for line in accuracy.get_lines())
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["1/8", "all"]
    assert "saw 3 test videos" in figure.get_supxlabel()


def test_figure_labels_published_accuracies_only_on_request() -> None:
    def texts(published: bool) -> str:
        return " ".join(
            t.get_text() for t in label_fraction_figure(ACCURACY, [], **OPTIONS, published=published).axes[0].texts
        )

    assert "published, all labels, mean of 3 splits: VGAN + fine tune 52.1 %" in texts(True)
    assert "published" not in texts(False)


def test_figure_without_gains_has_no_gain_panel() -> None:
    assert len(label_fraction_figure(ACCURACY[:2], [], **OPTIONS).axes) == 1


def test_all_labels_figure_has_a_bar_for_each_init_and_each_published_method() -> None:
    def names(published: bool) -> list[str]:
        axes = all_labels_figure(ACCURACY, **OPTIONS, published=published).axes[0]
        assert len(axes.patches) == len(axes.get_yticklabels())
        return [label.get_text() for label in axes.get_yticklabels()]

    assert names(False) == ["random", "vgan"]  # the best on top
    assert len(names(True)) == 2 + len(PUBLISHED)
    assert "published: VGAN + fine tune" in names(True)
    with pytest.raises(ValueError, match="all labels"):
        all_labels_figure(ACCURACY[:1], **OPTIONS)


@pytest.mark.parametrize("published", [False, True])
def test_pages_are_self_contained(published: bool) -> None:
    pages = (
        label_fraction_page(ACCURACY, GAIN, **OPTIONS, remark="a note", published=published),
        all_labels_page(ACCURACY, **OPTIONS, published=published),
    )
    for page in pages:
        assert PROTOCOL in page
        assert "chance 20 %" in page
        assert ("VGAN + fine tune" in page) == published
        assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page)
    assert "a note" in pages[0]


def test_figure_png_does_not_change_the_pyplot_backend() -> None:
    backend = mpl.get_backend()
    picture = Image.open(BytesIO(figure_png(label_fraction_figure(ACCURACY, GAIN, **OPTIONS))))
    assert picture.width > 1000
    assert np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 50
    assert mpl.get_backend() == backend


def test_figure_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        label_fraction_figure([], [], **OPTIONS)
