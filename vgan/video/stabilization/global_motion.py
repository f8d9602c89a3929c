"""Dense estimate of the global motion that remains in a clip, independent of the registration that made the clip.

Registration follows keypoints and can lock onto the wrong thing: graphics burnt into the picture, or water. This module
measures the result: the optical flow of blocks of the rendered clip by least squares (one linear step of Lucas and
Kanade 1981), and the similarity that most blocks of a pair of frames follow, by reweighted least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vgan.video.stabilization.geometry import EVIDENCE_PX

SIDE, BLOCK = 64, 8  # pixels: size of the picture that is measured, and of a block
BLOCKS = SIDE // BLOCK
BLUR_PX = 1.0  # standard deviation; extends the range of the linear step to about 2 px
# Smaller eigenvalue of a block's structure tensor, squared gray values: full weight from here, none below a quarter.
TEXTURE = 256.0
AGREEMENT_PX = 0.5  # maximum error of a block that follows the global motion, pixels at 128 px
SOFTNESS_PX = 0.3  # error with a weight of 1/4 in the last iteration, pixels at 128 px
ITERATIONS, SHRINK = 6, 1.6  # the softness starts at 1 px and is divided by SHRINK per iteration
UNIT = EVIDENCE_PX / SIDE  # pixels at EVIDENCE_PX per pixel of the measured picture


@dataclass(frozen=True)
class GlobalMotion:
    """Global motion of a clip between adjacent frames.

    Attributes:
        rms_px: RMS motion of the picture's corners, pixels at a short side of 128 px; pairs of frames are weighted by
            the square of their agreement.
        agreement: share of the textured blocks that follow the global motion, median over pairs of frames, 0..1.
        textured: share of the blocks that have texture, mean over pairs of frames, 0..1.
    """

    rms_px: float
    agreement: float
    textured: float


NO_TEXTURE = GlobalMotion(rms_px=0.0, agreement=0.0, textured=0.0)


def measure_global_motion(clip: np.ndarray, covered: np.ndarray | None = None) -> GlobalMotion:
    """Measure the global motion between adjacent frames of a square clip.

    Motion of more than about 4 px per frame is underestimated, but stays far above that of a steady clip.

    Args:
        clip: frames (T, S, S, 3) uint8, or gray (T, S, S).
        covered: pixels (T, S, S) or (1, S, S) bool to measure; blocks with other pixels (filled, burnt-in graphics) are
            not measured. None: all.

    Returns:
        Global motion; NO_TEXTURE if no pair of different frames has a block with texture.
    """
    grays = np.stack([_small_gray(frame) for frame in clip])
    flow, weights = _block_flow(grays)
    if covered is not None and not covered.all():
        full = np.stack([_full_blocks(mask) for mask in covered])
        weights *= full[-len(weights) :] & full[: len(weights)]
    textured = weights.any(1)
    if not textured.any():
        return NO_TEXTURE
    is_repeat = (grays[1:] == grays[:-1]).all((1, 2))  # from resampling a slow source
    measured = textured & ~is_repeat if (textured & ~is_repeat).any() else textured
    corner_px, agreement = _fit_similarities(flow[measured], weights[measured])
    # A flash or a passing object leaves pairs on whose motion few blocks agree: they say little about the camera.
    rms_px = np.sqrt((agreement**2 * corner_px**2).sum() / max(1e-9, (agreement**2).sum()))
    return GlobalMotion(float(rms_px), float(np.median(agreement)), float((weights > 0).mean()))


def _small_gray(frame: np.ndarray) -> np.ndarray:
    """Return a frame (S, S, 3) or (S, S) uint8 as blurred gray picture (SIDE, SIDE) float32."""
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if frame.ndim == 3 else frame
    if len(gray) != SIDE:
        gray = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(gray.astype(np.float32), (0, 0), BLUR_PX)


def _full_blocks(mask: np.ndarray) -> np.ndarray:
    """Return the blocks (BLOCKS * BLOCKS,) without a filled pixel of a mask (S, S) bool."""
    share = cv2.resize(mask.astype(np.float32), (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)
    return share.ravel() > 1 - 1e-6


def _block_flow(grays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the optical flow of each block between adjacent pictures.

    Args:
        grays: pictures (T, SIDE, SIDE) float32.

    Returns:
        Flow (T - 1, blocks) complex (x + iy), pixels at EVIDENCE_PX, and weight (T - 1, blocks) by texture, 0..1.
    """
    middle = grays[:-1] + grays[1:]  # twice the mean
    x, y = np.zeros_like(middle), np.zeros_like(middle)
    x[:, :, 1:-1] = 0.25 * (middle[:, :, 2:] - middle[:, :, :-2])
    y[:, 1:-1] = 0.25 * (middle[:, 2:] - middle[:, :-2])
    change = np.diff(grays, axis=0)
    xx, xy, yy, xt, yt = (_block_sums(a * b) for a, b in ((x, x), (x, y), (y, y), (x, change), (y, change)))
    smaller_eigenvalue = (xx + yy - np.hypot(xx - yy, 2 * xy)) / 2
    weights = np.minimum(smaller_eigenvalue / TEXTURE, 1.0)
    weights[weights < 0.25] = 0
    ridge = 1e-3 * (xx + yy) + 1e-3
    xx, yy = xx + ridge, yy + ridge
    flow = -((yy * xt - xy * yt) + 1j * (xx * yt - xy * xt)) / (xx * yy - xy * xy)
    return UNIT * flow, weights


def _block_sums(values: np.ndarray) -> np.ndarray:
    """Sum `values` (P, SIDE, SIDE) float32 over each block; returns (P, blocks) float64.

    Rows are added first: a sum over both axes of a block at once takes nine times as long.
    """
    rows = values.reshape(len(values), BLOCKS, BLOCK, SIDE).sum(2)
    return rows.reshape(len(values), BLOCKS, BLOCKS, BLOCK).sum(3).reshape(len(values), -1).astype(np.float64)


def _fit_similarities(flow: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the similarity that most blocks of each pair follow (Geman-McClure weights, from the weighted median).

    Args:
        flow: (P, blocks) complex, pixels at EVIDENCE_PX.
        weights: (P, blocks), at least one above 0 per pair.

    Returns:
        RMS motion (P,) of the picture's corners, pixels at EVIDENCE_PX, and share (P,) of the weights of blocks that
        follow the motion within AGREEMENT_PX, 0..1.
    """
    centers = EVIDENCE_PX * ((np.arange(BLOCKS) + 0.5) / BLOCKS - 0.5)
    place = (centers[None, :] + 1j * centers[:, None]).ravel()
    shift = _weighted_median(flow.real, weights) + 1j * _weighted_median(flow.imag, weights)
    turn = np.zeros_like(shift)  # rotation and zoom: the flow at `place` is turn * place + shift
    for iteration in range(ITERATIONS):
        softness = max(SOFTNESS_PX, SHRINK**-iteration)
        error = np.abs(flow - turn[:, None] * place - shift[:, None])
        soft = weights / (1 + (error / softness) ** 2) ** 2
        total = soft.sum(1) + 1e-9
        mean_place, mean_flow = (soft * place).sum(1) / total, (soft * flow).sum(1) / total
        offset = place - mean_place[:, None]
        spread = (soft * np.abs(offset) ** 2).sum(1) + EVIDENCE_PX**2 / 8  # few blocks: rather a shift than a turn
        turn = (soft * offset.conj() * (flow - mean_flow[:, None])).sum(1) / spread
        shift = mean_flow - turn * mean_place
    error = np.abs(flow - turn[:, None] * place - shift[:, None])
    agreement = (weights * (error < AGREEMENT_PX)).sum(1) / weights.sum(1)
    return np.sqrt(np.abs(shift) ** 2 + np.abs(turn) ** 2 * EVIDENCE_PX**2 / 2), agreement


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted median (P,) of each row of `values` (P, N)."""
    order = np.argsort(values, 1)
    cumulative = np.take_along_axis(weights, order, 1).cumsum(1)
    middle = (cumulative >= cumulative[:, -1:] / 2).argmax(1)
    return np.take_along_axis(values, order, 1)[np.arange(len(values)), middle]
