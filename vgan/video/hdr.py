"""HDR pictures to ordinary ones: the PQ and HLG curves undone, BT.2020 colors to BT.709, highlights rolled off.

Ordinary and HDR sources then look alike to a network, which would else see flat, dull pictures of the second kind.
"""

from __future__ import annotations

import functools

import numpy as np

WHITE = 203.0  # cd/m2 of diffuse white, https://www.itu.int/pub/R-REP-BT.2408
PEAK = 1000.0  # cd/m2, taken for the brightest in a picture: what HLG's nominal display and most PQ grades have
GAMMA = 2.4  # of an ordinary display, https://www.itu.int/rec/R-REC-BT.1886
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
TO_BT709 = np.array(  # linear light, https://www.itu.int/pub/R-REP-BT.2407
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)

# https://www.itu.int/rec/R-REC-BT.2100, table 4
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def tone_map(image: np.ndarray, curve: str, wide: bool = True) -> np.ndarray:
    """An HDR picture as an ordinary display would show it.

    The highlights between diffuse white and 1000 cd/m2 are rolled off by BT.2390's knee on the largest channel, so that
    hue stays; what is darker than about 90 cd/m2 keeps its light.

    Args:
        image: (H, W, 3) uint16 RGB, full range, on its transfer curve.
        curve: "pq" or "hlg" (BT.2100).
        wide: colors are BT.2020's, not BT.709's.

    Returns:
        (H, W, 3) uint8 RGB, BT.709.
    """
    if curve == "pq":
        light = _pq_light()[image]
    else:
        scene = _hlg_light()[image]
        luminance = (scene @ BT2020_LUMINANCE)[..., None]
        light = PEAK * np.cbrt(luminance) ** 0.6 * scene  # luminance to the power 0.2: the display's own gamma of 1.2
    if wide:
        light = light @ TO_BT709.T
    light = light.clip(0, None)
    brightest = light.max(axis=2, keepdims=True)
    light, brightest = light / np.maximum(brightest / PEAK, 1), np.minimum(brightest, PEAK)
    shown = light * _gain()[(brightest * ((len(_gain()) - 1) / PEAK)).astype(np.int32)]
    return np.rint(255 * (shown / WHITE).clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def pq_to_light(code: np.ndarray) -> np.ndarray:
    """Luminance in cd/m2 (0..10000) of PQ codes (0..1)."""
    root = code ** (1 / M2)
    return 10000 * (np.maximum(root - C1, 0) / (C2 - C3 * root)) ** (1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """PQ codes (0..1) of luminance in cd/m2 (0..10000)."""
    power = (light / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def roll_off(light: np.ndarray) -> np.ndarray:
    """Luminance in cd/m2, 0..PEAK brought into 0..WHITE: https://www.itu.int/pub/R-REP-BT.2390, section 5.4.1."""
    scale, white = light_to_pq(np.array([PEAK, WHITE]))
    code, most = light_to_pq(light) / scale, white / scale
    knee = 1.5 * most - 0.5
    t = ((code - knee) / (1 - knee)).clip(0, 1)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_light(np.where(code < knee, code, bent) * scale)


def hlg_to_light(code: np.ndarray) -> np.ndarray:
    """Scene light (0..1) of HLG codes (0..1): BT.2100, table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


@functools.cache
def _pq_light() -> np.ndarray:
    return pq_to_light(np.arange(65536) / 65535).astype(np.float32)


@functools.cache
def _hlg_light() -> np.ndarray:
    return hlg_to_light(np.arange(65536) / 65535).astype(np.float32)


@functools.cache
def _gain() -> np.ndarray:
    """What light is multiplied with, by the largest channel in steps of a twentieth of a cd/m2."""
    light = np.linspace(0, PEAK, round(20 * PEAK) + 1)[1:]
    gain = (roll_off(light) / light).astype(np.float32)
    return np.concatenate([gain[:1], gain])
