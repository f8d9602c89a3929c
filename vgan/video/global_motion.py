"""Dense estimate of the global motion that remains in a clip, independent of the registration that made the clip.

Registration follows keypoints and can lock onto the wrong thing: graphics burnt into the picture, or water. This module
looks at the result: the optical flow of blocks of the rendered clip by least squares (Lucas and Kanade 1981, one
linear step), and the similarity that most blocks of a pair of frames follow, by reweighted least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from vgan.video.registration import EVIDENCE_PX

SIDE, BLOCK = 64, 8  # pixels: size of the picture that is measured, and of a block
BLUR_PX = 1.0  # standard deviation; extends the range of the linear step to about 2 px
# Smaller eigenvalue of a block's structure tensor, gray values squared: full weight from here, none below a quarter.
TEXTURE = 256.0
AGREEMENT_PX = 0.5  # maximum error of a block that follows the global motion, pixels at 128 px
PIXELS = EVIDENCE_PX / SIDE  # pixels at EVIDENCE_PX per pixel of the measured picture


@dataclass(frozen=True)
class GlobalMotion:
    """Global motion of a clip between adjacent frames.

    Attributes:
        rms_px: RMS motion of the picture's corners, pixels at a short side of 128 px.
        agreement: share of the textured blocks that follow the global motion, median over pairs of frames, 0..1.
        textured: share of blocks with enough texture to be measured, mean over pairs of frames, 0..1.
    """

    rms_px: float
    agreement: float
    textured: float


def measure_global_motion(clip: np.ndarray, covered: np.ndarray | None = None) -> GlobalMotion:
    """Measure the global motion between adjacent frames of a square clip.

    Motion of more than about 4 px per frame is underestimated, but remains far above that of a steady clip.

    Args:
        clip: frames (T, S, S, 3) uint8.
        covered: pixels (T, S, S) bool that show the source; the others are filled and not measured. None: all.
    """
    grays = np.stack([_blurred(frame) for frame in clip])
    flow, texture = _block_flow(grays)
    weights = np.minimum(texture / TEXTURE, 1.0)
    weights[weights < 0.25] = 0
    if covered is not None:
        visible = np.stack(
            [cv2.resize(mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for mask in covered]
        )
        full = visible.reshape(len(clip), SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).all((2, 4)).reshape(len(clip), -1)
        weights *= full[1:] & full[:-1]
    corner_px, agreement = _fit_similarities(flow, weights)
    measured = weights.sum(1) > 0
    if not measured.any():
        return GlobalMotion(0.0, 0.0, 0.0)
    return GlobalMotion(
        rms_px=float(np.sqrt((corner_px[measured] ** 2).mean())),
        agreement=float(np.median(agreement[measured])),
        textured=float(weights.mean()),
    )
