"""The model card is a self-contained page with all numbers, and escapes its texts."""

from __future__ import annotations

import re

import pytest

from vgan.viz.figures import figure_png, spectrum_figure
from vgan.viz.model_card import Card, CardModel, Metric, render_card
from vgan.viz.report import Media

HOSTILE = "<script>alert('x')</script>\" onload=\"y"


def picture(alt: str) -> Media:
    return Media(data=b"\x89PNG" + alt.encode(), media_type="image/png", alt=alt)


def card(text: str = "gan, step 4", streams: Media | None = None) -> Card:
    return Card(
        title=f"Model card: {text}",
        created="today",
        rows=("real, reference", text),
        metrics=(
            Metric(heading="fvd", name="fvd256_x-r1_y_32f", about=text, values=("-", "9.4 (8 to 11)")),
            Metric(heading="motion", name="motion256_r64_32f", about="steps", values=("3", "1 (0.5 to 2)")),
        ),
        notes=(text,),
        protocol=(("num", "256"),),
        spectra=picture("spectra"),
        models=(
            CardModel(
                name=text,
                about=text,
                samples=picture("samples"),
                streams=streams,
                neighbours=picture("neighbours"),
                health=(("mask/mean", "0.2"),),
                warnings=("D tells every clip right",),
                lineage=(("checkpoint uri", text),),
            ),
        ),
    )


def test_card_contains_every_metric_and_picture() -> None:
    html = render_card(card(streams=picture("streams")))
    for expected in ("fvd256_x-r1_y_32f", "motion256_r64_32f", "mask/mean", "D tells every clip right", "gan, step 4"):
        assert expected in html
    assert re.search(r">9\.4<small>8 to 11</small>", html)
    assert [alt for alt in ("samples", "streams", "neighbours", "spectra") if f'alt="{alt}"' not in html] == []
    assert "Foreground, mask" not in render_card(card())


def test_card_loads_no_external_resource_and_escapes_text() -> None:
    html = render_card(card(HOSTILE))
    assert "<script" not in html
    assert HOSTILE.split('"')[0] not in html
    assert "default-src 'none'" in html
    assert [link for link in re.findall(r'(?:src|href)="([^"]+)"', html) if not link.startswith("data:")] == []


@pytest.mark.parametrize("num_frames", [16, 32])
def test_spectrum_figure_is_a_picture(num_frames: int) -> None:
    png = figure_png(spectrum_figure({"real": [0.6, 0.4], "generated": [0.5, 0.5]}, num_frames))
    assert png.startswith(b"\x89PNG")
