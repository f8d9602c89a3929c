"""Published points of the transfer curves, and invariants of tone mapping."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.video.decoding.hdr import GAMMA, PEAK, WHITE, hlg_to_light, light_to_pq, pq_to_light, roll_off, tone_map


def gray(code: float) -> np.ndarray:
    """Create a gray pixel (1, 1, 3) uint16."""
    return np.full((1, 1, 3), round(code * 65535), np.uint16)


@pytest.mark.parametrize(
    ("light", "code"), [(0.0, 0.0), (100.0, 0.5081), (203.0, 0.5807), (1000.0, 0.7518), (1e4, 1.0)]
)
def test_pq_has_its_published_points(light, code):
    assert light_to_pq(np.array(light)) == pytest.approx(code, abs=1e-4)
    assert pq_to_light(light_to_pq(np.array(light))) == pytest.approx(light, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("code", "light"), [(0.0, 0.0), (0.5, 1 / 12), (0.75, 0.265), (1.0, 1.0)])
def test_hlg_has_its_published_points(code, light):
    assert hlg_to_light(np.array(code)) == pytest.approx(light, abs=1e-4)


def test_roll_off_preserves_dark_values_and_ends_at_white():
    light = np.linspace(0, PEAK, 2001)
    displayed = roll_off(light)
    assert displayed[light < 85] == pytest.approx(light[light < 85], rel=1e-9)
    assert (np.diff(displayed) > -1e-9).all()
    assert displayed[-1] == pytest.approx(WHITE)


def test_tone_map_pq_and_hlg_give_equal_diffuse_white():
    pq, hlg = tone_map(gray(0.5807), "pq"), tone_map(gray(0.75), "hlg")  # BT.2408, table 1
    assert pq == pytest.approx(hlg, abs=1)
    assert 220 < pq[0, 0, 0] < 240


def test_tone_map_gray_stays_gray():
    for code in (0.0, 0.2, 0.5, 0.8, 1.0):
        pixel = tone_map(gray(code), "pq")[0, 0].astype(int)
        assert np.ptp(pixel) <= 1


def test_tone_map_dark_gray_keeps_its_luminance():
    displayed = tone_map(gray(float(light_to_pq(np.array(20.0)))), "pq")
    assert displayed == pytest.approx(255 * (20 / WHITE) ** (1 / GAMMA), abs=1)


def test_tone_map_bright_colors_keep_their_hue():
    code = light_to_pq(np.array([[[4000.0, 2000.0, 1000.0]]]))
    displayed = tone_map(np.rint(code * 65535).astype(np.uint16), "pq", wide=False)[0, 0] / 255
    assert displayed**GAMMA == pytest.approx([1, 0.5, 0.25], abs=0.01)
