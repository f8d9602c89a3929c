"""Tone mapping from HDR to SDR: inverse PQ and HLG curves, BT.2020 to BT.709 colors, highlight roll-off.

Without it, a network would see HDR sources with lower contrast and saturation than SDR sources.
"""

from __future__ import annotations

import functools

import numpy as np

WHITE = 203.0  # cd/m2 of diffuse white, https://www.itu.int/pub/R-REP-BT.2408
PEAK = 1000.0  # cd/m2, assumed peak of a picture: that of HLG's nominal display and of most PQ masters
GAMMA = 2.4  # of an SDR display, https://www.itu.int/rec/R-REC-BT.1886
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
TO_BT709 = np.array(  # linear light, https://www.itu.int/pub/R-REP-BT.2407
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)

# https://www.itu.int/rec/R-REC-BT.2100, table 4
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def tone_map(image: np.ndarray, curve: str, wide: bool = True) -> np.ndarray:
    """Convert an HDR picture to SDR.

    Highlights up to 1000 cd/m2 are compressed by the knee of BT.2390 on the largest channel, which preserves hue;
    luminance below about 90 cd/m2 is unchanged.

    Args:
        image: (H, W, 3) uint16 RGB, full range, encoded with `curve`.
        curve: transfer curve, "pq" or "hlg" (BT.2100).
        wide: True for BT.2020 primaries, False for BT.709.

    Returns:
        (H, W, 3) uint8 RGB, BT.709.
    """
    if curve == "pq":
        light = _pq_light()[image]
    else:
        scene = _hlg_light()[image]
        luminance = (scene @ BT2020_LUMINANCE)[..., None]
        light = PEAK * np.cbrt(luminance) ** 0.6 * scene  # luminance to the power 0.2: display gamma 1.2 (BT.2100)
    if wide:
        light = light @ TO_BT709.T
    light = light.clip(0, None)
    brightest = light.max(axis=2, keepdims=True)
    light, brightest = light / np.maximum(brightest / PEAK, 1), np.minimum(brightest, PEAK)
    displayed = light * _gain()[(brightest * ((len(_gain()) - 1) / PEAK)).astype(np.int32)]
    return np.rint(255 * (displayed / WHITE).clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def pq_to_light(code: np.ndarray) -> np.ndarray:
    """Convert PQ codes (0..1) to luminance in cd/m2 (0..10000)."""
    root = code ** (1 / M2)
    return 10000 * (np.maximum(root - C1, 0) / (C2 - C3 * root)) ** (1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """Convert luminance in cd/m2 (0..10000) to PQ codes (0..1)."""
    power = (light / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def roll_off(light: np.ndarray) -> np.ndarray:
    """Compress luminance from 0..PEAK to 0..WHITE cd/m2: https://www.itu.int/pub/R-REP-BT.2390, section 5.4.1."""
    scale, white = light_to_pq(np.array([PEAK, WHITE]))
    code, max_code = light_to_pq(light) / scale, white / scale
    knee = 1.5 * max_code - 0.5
    t = ((code - knee) / (1 - knee)).clip(0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * max_code
    return pq_to_light(np.where(code < knee, code, spline) * scale)


def hlg_to_light(code: np.ndarray) -> np.ndarray:
    """Convert HLG codes (0..1) to scene light (0..1): BT.2100, table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


@functools.cache
def _pq_light() -> np.ndarray:
    """Return the luminance in cd/m2 of all 16-bit PQ codes, (65536,) float32."""
    return pq_to_light(np.arange(65536) / 65535).astype(np.float32)


@functools.cache
def _hlg_light() -> np.ndarray:
    """Return the scene light (0..1) of all 16-bit HLG codes, (65536,) float32."""
    return hlg_to_light(np.arange(65536) / 65535).astype(np.float32)


@functools.cache
def _gain() -> np.ndarray:
    """Return the factors of `roll_off` for a largest channel of 0..PEAK in steps of 1/20 cd/m2, float32."""
    light = np.linspace(0, PEAK, round(20 * PEAK) + 1)[1:]
    gain = (roll_off(light) / light).astype(np.float32)
    return np.concatenate([gain[:1], gain])
