"""The model card is one page that carries everything and lets nothing in."""

from __future__ import annotations

import re

import pytest

from vgan.viz.card import Card, CardModel, Metric, render_card
from vgan.viz.figures import figure_png, spectrum_figure
from vgan.viz.report import Media

HOSTILE = "<script>alert('x')</script>\" onload=\"y"


def picture(alt: str) -> Media:
    return Media(data=b"\x89PNG" + alt.encode(), media_type="image/png", alt=alt)


def card(word: str = "gan, step 4", streams: Media | None = None) -> Card:
    return Card(
        title=f"Model card: {word}",
        created="today",
        rows=("real, reference", word),
        metrics=(
            Metric(heading="fvd", name="fvd256_x-r1_y_32f", about=word, values=("-", "9.4 (8 to 11)")),
            Metric(heading="motion", name="motion256_r64_32f", about="steps", values=("3", "1 (0.5 to 2)")),
        ),
        notes=(word,),
        protocol=(("num", "256"),),
        spectra=picture("spectra"),
        models=(
            CardModel(
                name=word,
                about=word,
                samples=picture("samples"),
                streams=streams,
                neighbours=picture("neighbours"),
                health=(("mask/mean", "0.2"),),
                warnings=("D tells every clip right",),
                lineage=(("checkpoint uri", word),),
            ),
        ),
    )


def test_card_shows_every_number_under_its_name_and_every_picture() -> None:
    html = render_card(card(streams=picture("streams")))
    for text in ("fvd256_x-r1_y_32f", "motion256_r64_32f", "mask/mean", "D tells every clip right", "gan, step 4"):
        assert text in html
    assert re.search(r">9\.4<small>8 to 11</small>", html)
    assert [alt for alt in ("samples", "streams", "neighbours", "spectra") if f'alt="{alt}"' not in html] == []
    assert "Foreground, mask" not in render_card(card())


def test_card_fetches_nothing_and_escapes_what_it_is_given() -> None:
    html = render_card(card(HOSTILE))
    assert "<script" not in html
    assert HOSTILE.split('"')[0] not in html
    assert "default-src 'none'" in html
    assert [link for link in re.findall(r'(?:src|href)="([^"]+)"', html) if not link.startswith("data:")] == []


@pytest.mark.parametrize("num_frames", [16, 32])
def test_spectrum_figure_is_a_picture(num_frames: int) -> None:
    png = figure_png(spectrum_figure({"real": [0.6, 0.4], "drawn": [0.5, 0.5]}, num_frames))
    assert png.startswith(b"\x89PNG")
