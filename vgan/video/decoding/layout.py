"""Conversion of decoded frames to displayed pictures: upright, square pixels, standard dynamic range, downscaled."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter

from vgan.video.decoding.hdr import tone_map

HD_LINES = 720  # without a color matrix, pictures of at least this height are BT.709, others BT.601 (as in players)
HDR_CURVES: dict[int, str] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
MAX_PIXEL_ASPECT = 4  # no standard has pixels more than 2.4 times wider than high; larger values are header errors
MAX_TURN_ERROR_DEG = 0.1  # larger deviations of a display matrix from a right angle are recorded
# (swap axes, flip vertically, flip horizontally) -> display matrix [a b; c d], without rotation first
ORIENTATIONS = {
    (swapped, upside_down, mirrored): (
        [[0, -1 if upside_down else 1], [-1 if mirrored else 1, 0]]
        if swapped
        else [[-1 if mirrored else 1, 0], [0, -1 if upside_down else 1]]
    )
    for swapped in (False, True)
    for upside_down in (False, True)
    for mirrored in (False, True)
}


class Layout:
    """Conversion from stored to displayed pictures (upright, square pixels), from the first frame of their size.

    Args:
        first: decoded frame.
        pixel_aspect: width / height of a stored pixel, None if unknown.
    """

    def __init__(self, first: av.VideoFrame, pixel_aspect: Fraction | None) -> None:
        (self.swapped, self.upside_down, self.mirrored), self.turn_error_deg = display_orientation(first)
        self.size = (first.width, first.height)
        self._stored = square_pixels(first.height, first.width, pixel_aspect)
        self.height, self.width = self._stored[::-1] if self.swapped else self._stored

    def converter(self, short_side: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
        """Return a function that converts decoded frames to (H, W, 3) uint8 RGB: area downscaling, then orientation."""
        height, width = reduced_size(*self._stored, short_side)
        # Shared by all frames: creating a scaler per frame, as `to_ndarray` does, takes two thirds of the time.
        reformatter = VideoReformatter()

        def convert(decoded: av.VideoFrame) -> np.ndarray:
            curve = HDR_CURVES.get(decoded.color_trc)
            scaled = reformatter.reformat(
                decoded,
                width=width,
                height=height,
                format="rgb48le" if curve else "rgb24",
                src_colorspace=_matrix(decoded),
                interpolation=Interpolation.AREA,
                threads=1,
            )
            image = scaled.to_ndarray()
            if curve:
                image = tone_map(image, curve, wide=decoded.color_primaries != ColorPrimaries.BT709)
            if self.swapped:
                image = image.swapaxes(0, 1)
            return np.ascontiguousarray(image[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])

        return convert


def reduced_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return (height, width) in pixels, downscaled to a short side of at most `short_side`, with equal aspect ratio."""
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def square_pixels(height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return the (height, width) with square pixels of a picture with pixels `pixel_aspect` times wider than high.

    The dimension along the longer side of a pixel remains, the other one shrinks, so that no dimension grows. An
    invalid `pixel_aspect` counts as 1.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return height, width
    if pixel_aspect > 1:
        return max(1, round(height / pixel_aspect)), width
    return height, max(1, round(width * pixel_aspect))


def display_orientation(first: av.VideoFrame) -> tuple[tuple[bool, bool, bool], float]:
    """Return the steps (swap axes, flip vertically, flip horizontally) of the display matrix, in this order.

    Phones write rotations, and front cameras reflections. Editors write matrices that are not exact: the nearest of
    the eight right-angled ones is used.

    Returns:
        The steps, and the angle between the matrix and that of the steps, degrees.
    """
    try:
        data = first.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 fails for all side data if one item has an unknown type, such as a photo's EXIF
        return _orientation_by_rotation(first.rotation)
    if data is None:
        return (False, False, False), 0.0
    return nearest_orientation(np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(float))


def nearest_orientation(matrix: np.ndarray) -> tuple[tuple[bool, bool, bool], float]:
    """Return the orientation nearest to a display matrix float64 (2, 2) of any scale, and the angle between them.

    The matrix [a b; c d] maps stored (x, y) to displayed (a x + c y, b x + d y). The angle, in degrees, is that between
    the matrices as vectors: of two rotations it is the angle between them. A matrix of zeros counts as upright.
    """
    norm = float(np.linalg.norm(matrix))
    if norm == 0:
        return (False, False, False), 0.0
    cosines = {steps: float((matrix * right).sum()) / (norm * math.sqrt(2)) for steps, right in ORIENTATIONS.items()}
    steps = max(cosines, key=lambda key: cosines[key])
    return steps, math.degrees(math.acos(min(1.0, cosines[steps])))


def _orientation_by_rotation(degrees: int) -> tuple[tuple[bool, bool, bool], float]:
    """Return `display_orientation` for a counterclockwise rotation; reflections are not represented."""
    angle = math.radians(degrees)
    return nearest_orientation(np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]))


def _matrix(decoded: av.VideoFrame) -> int | None:
    """Return the assumed color matrix of a frame without one; None if the frame specifies it."""
    if decoded.colorspace != 2 or decoded.format.is_rgb:
        return None
    if decoded.color_trc in HDR_CURVES:
        return Colorspace.BT2020
    return Colorspace.ITU709 if decoded.height >= HD_LINES else None
