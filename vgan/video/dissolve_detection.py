"""Detection of fades and dissolves in a clip: two scenes without a large difference between adjacent frames."""

from __future__ import annotations

import cv2
import numpy as np

from vgan.video.shot_detection import SIDE, block_similarity

FINE = 4.0  # sigma, pixels at SIDE: coarser structure is similar in most scenes (sky above, ground below)
# Measured on windows of uncut UCF101 that the score was not chosen on: 0 of 202 stabilized and 1 of 249 unstabilized
# ones score above 1. Of dissolves over 5 to 25 frames between two of its videos, 120 of 123 that could be stabilized
# score above 1, 139 of 144 unstabilized ones, and 144 of 144 fades from or to black (none of which can be stabilized).
# If a window contains only part of a dissolve, 93 % are detected if the part is four fifths, 80 % if it is 0.6 to 0.8,
# half at 0.4 to 0.6.
UNIT = 0.28


def dissolve_score(clip: np.ndarray) -> float:
    """Score a fade or dissolve in a stabilized `clip` (T, H, W, 3) uint8; a score above 1 counts as detected.

    The score is the dissimilarity of first and last frame (1 - `shot_detection.block_similarity`) times the evidence of
    blending rather than motion: the share of each frame's fine structure that a non-negative combination of first and
    last frame explains (median), plus the loss of contrast in the frame with the lowest contrast, because averages of
    different pictures have low contrast. Both are large in a fade from or to black. The score is 0 if first and last
    frame match, regardless of the frames between them.
    """
    images = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in clip])
    dissimilarity = 1 - max(block_similarity(images[0], images[-1]), block_similarity(images[-1], images[0]))
    gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]).astype(np.float32)
    contrast = gray.std((1, 2))
    contrast_loss = 1 - float(contrast.min()) / max(float(contrast.max()), 1e-3)
    return dissimilarity * (_explained_by_ends(gray) + contrast_loss) / UNIT


def _explained_by_ends(gray: np.ndarray) -> float:
    """Return the median share (0..1) of fine structure of frames (T, H, W) explained by the first and the last one."""
    sample = gray[[0, -1, *range(1, len(gray) - 1, 2)]]  # every other frame suffices
    fine = np.stack([image - cv2.GaussianBlur(image, (0, 0), FINE) for image in sample]).reshape(len(sample), -1)
    ends, between = fine[:2], fine[2:]
    weights = np.linalg.solve(ends @ ends.T + 1e-3 * np.eye(2), ends @ between.T).clip(0, None)  # (2, T)
    residual = ((between - weights.T @ ends) ** 2).sum(1)
    return float(np.median(1 - residual / ((between**2).sum(1) + 1e-3)).clip(0, 1))
