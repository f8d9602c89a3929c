"""Correction of the drift of composed transforms by direct alignment with the clip's first frame.

One step of inverse-compositional Gauss-Newton (Baker and Matthews 2004) on the small image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vgan.video.stabilization.geometry import corner_distance, is_affine

ALIGN_BLUR_PX = 1.0  # standard deviation, on the small image; without blur the error is twice as large
STRIDE = 2  # pixels of the blurred small image: with all of them the error is the same, at twice the time
MIN_OVERLAP = 0.4  # minimum share of the first frame in view; below it the composed transform is more reliable
# A larger disagreement between composed transform and alignment is a change of the scene, not drift.
MAX_CORRECTION_PX = 1.0  # RMS of the corners
# Share of a correction that is applied. With 1, noise of the alignment adds jitter to scenes with depth (remaining
# jitter on real video 0.186 px at 1, 0.170 at 0.5, 0.157 at 0); with 0, errors accumulate (known motion: 0.12 px
# instead of 0.05).
HOLD = 0.5


@dataclass(frozen=True)
class Template:
    """Reference image of `align`, (h, w) float32, and its derivatives (6, N) by the six unknowns, N pixels of it."""

    image: np.ndarray
    jacobian: np.ndarray
    to_unit: np.ndarray  # (3, 3): from pixels to coordinates relative to the center, in units of half the height


def make_template(small: np.ndarray) -> Template:
    """Prepare the first frame's small image (h, w) uint8 for `align`."""
    image = _blurred(small)
    height, width = image.shape
    unit = 2 / height
    to_unit = np.array([[unit, 0, -unit * (width - 1) / 2], [0, unit, -unit * (height - 1) / 2], [0, 0, 1]])
    # Gradients per half height; 1/8 normalizes Sobel's kernel.
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order, scale=1 / (8 * unit)) for order in ((1, 0), (0, 1)))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = unit * x + to_unit[0, 2], unit * y + to_unit[1, 2]
    derivatives = (dx * x + dy * y, dy * x - dx * y, dx, dy, image, np.ones_like(image))
    jacobian = np.stack([_sampled(d) for d in derivatives]).astype(np.float32)
    return Template(image, jacobian, to_unit)


def align(template: Template, small: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, float]:
    """Improve `transform` (3, 3), which maps `small` (h, w) uint8 to `template`.

    One step of inverse-compositional Gauss-Newton: a second one changes the error on known motion by less than 0.01 px,
    because the preceding frame was aligned too. The six unknowns are those of the similarity and the gain and bias of
    the exposure; pixels with a large difference have a low weight.

    Returns:
        Improved transform (3, 3), and the share of the template in view, 0..1. Below MIN_OVERLAP `transform` is
        returned unchanged.
    """
    difference = _sampled(warp(_blurred(small), transform) - template.image)
    visible = np.isfinite(difference)
    overlap = float(visible.mean())
    if overlap < MIN_OVERLAP:
        return transform, overlap
    sample = difference[visible]
    bias = np.median(sample)
    softness = 3 * np.median(np.abs(sample - bias)) + 1
    difference[~visible] = bias
    weighted = template.jacobian * (visible / (1 + ((difference - bias) / softness) ** 2) ** 2)
    # einsum has a fixed order of summation, a threaded matrix product may not.
    normal = np.einsum("in,jn->ij", weighted, template.jacobian)
    normal += 1e-6 * np.trace(normal) * np.eye(6)  # regularization: a blank picture gets no correction
    scale, rotation, right, down, _, _ = np.linalg.solve(normal, np.einsum("in,n->i", weighted, difference))
    correction = np.array([[1 + scale, -rotation, right], [rotation, 1 + scale, down], [0, 0, 1]])
    aligned = np.linalg.inv(template.to_unit) @ correction @ template.to_unit @ transform
    return aligned / aligned[2, 2], overlap


def correct_drift(
    template: Template, small: np.ndarray, predicted: np.ndarray, unit: float, hold: float = HOLD
) -> np.ndarray:
    """Correct the drift of `predicted` (3, 3), which maps a frame to the first one, by their direct alignment.

    Applies the share `hold` of the correction, if the frames overlap enough and the correction is small. Similarities
    form a vector space, so an interpolation of two of them is a similarity as well.

    Args:
        template: first frame.
        small: small image of the frame, (h, w) uint8.
        predicted: composed transform (3, 3), pixels of the small image.
        unit: pixels at EVIDENCE_PX per pixel of the small image.
        hold: share of the correction that is applied, 0..1.
    """
    aligned, overlap = align(template, small, predicted)
    correction_px = corner_distance(aligned, predicted, *small.shape) * unit
    if overlap < MIN_OVERLAP or correction_px >= MAX_CORRECTION_PX:
        return predicted
    return predicted + hold * (aligned - predicted)


def warp(image: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Warp `image` (h, w) float32 by a homography (3, 3); pixels outside the image become NaN."""
    height, width = image.shape
    options: dict[str, Any] = {
        "flags": cv2.INTER_LINEAR,
        "borderMode": cv2.BORDER_CONSTANT,
        "borderValue": float("nan"),
    }
    if is_affine(transform):
        return cv2.warpAffine(image, transform[:2], (width, height), **options)
    return cv2.warpPerspective(image, transform, (width, height), **options)


def _sampled(image: np.ndarray) -> np.ndarray:
    """Return every STRIDE-th pixel (N,) of every STRIDE-th row of an image (h, w)."""
    return image[::STRIDE, ::STRIDE].ravel()


def _blurred(small: np.ndarray) -> np.ndarray:
    """Blur an image (h, w) for `align`; returns float32."""
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), ALIGN_BLUR_PX)
