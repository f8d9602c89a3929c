"""Hard cuts: where neighbouring frames differ much, much more than just before, and parts of one are not in the other.

Measured on 64 px frames at 25 a second (tests/benchmarks/shots.py), one thread, beside TransNetV2's weights at 0.5:

                                      here              TransNetV2
    frames a second                   5,000 to 7,400    32 to 42
    splices of two UCF101 videos      398 of 399        24 of 24 (the first of the same)
      cuts elsewhere in those reels   2                 0
    bikes.mp4, scene_cuts.mp4         5 and 5 of 5      5 and 3 of 5 (the latter shows the film beside still graphs)
    uncut UCF101 with a false cut     0 of 136 videos   5 of 136 videos
    dissolves over 5 to 25 frames     0 of 200          7 of 10

Not counted as false are a cut and a jump over lost frames in two of the 136. The bounds were chosen on the same videos,
none for TransNetV2. It is a hundred times slower, slower than SIFT, so cuts are found here; what is missed fails
registration (930 of 930 splices), and dissolves are left to `vgan.video.dissolve`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from vgan.config import ShotConfig
from vgan.video.decode import Frame

SIDE = 64  # pixels: small enough to be cheap and blind to detail, and the size the bounds were measured at
BLOCK = 16  # pixels at SIDE
REACH = 8  # pixels at SIDE: a pan that leaves a picture in 8 frames, or a third of a second
MIN_TEXTURE = 3.0  # standard deviation of gray values; flatter blocks correlate by their noise


def split_shots(frames: Iterable[tuple[int, Frame]], config: ShotConfig) -> Iterator[tuple[int, Frame]]:
    """(run, frame) becomes (shot, frame); shots count from 0 and end at a new run, a cut or a change of picture size.

    A cut is a mean absolute RGB difference at 64x64 of at least `config.min_difference` that is also `config.ratio`
    times the third largest of the last `config.history` differences (fast motion and flicker differ much all the time),
    between pictures of which one does not hold the blocks of the other (`likeness`; exposure jumps, camera flashes and
    fast pans change every pixel and keep them). The frame after it must be as unlike the frame before it, so a broken
    or blank frame does not cut either; for that, a frame in doubt is held back until the next one is seen. Fades and
    dissolves are not found.
    """
    history: deque[float] = deque(maxlen=config.history)
    shot, last_run = 0, 0
    last: Frame | None = None
    settled = np.zeros(0, np.uint8)  # the last frame not in doubt, at 64x64
    doubtful: list[Frame] = []  # a frame that may start a shot, and its repeats
    doubtful_small = settled
    bound = 0.0
    for run, frame in frames:
        if frame is last:  # repeated by the resampling: no motion to learn from
            if doubtful:
                doubtful.append(frame)
            else:
                yield shot, frame
            continue
        small = cv2.resize(frame.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        broken = last is not None and (run != last_run or frame.image.shape != last.image.shape)
        if doubtful:
            if broken or is_cut(settled, small, bound, config):
                shot += 1
                settled = doubtful_small
            for held in doubtful:
                yield shot, held
            doubtful = []
        if broken:
            shot += 1
        elif last is not None:
            bound = cut_bound(history, config)
            history.append(difference(settled, small))  # a cut's too: two outliers are forgiven, more are flicker
            if is_cut(settled, small, bound, config):
                doubtful, doubtful_small = [frame], small
        last, last_run = frame, run
        if not doubtful:
            settled = small
            yield shot, frame
    for held in doubtful:
        yield shot + 1, held


def is_cut(before: np.ndarray, after: np.ndarray, bound: float, config: ShotConfig) -> bool:
    """Whether two RGB images (64, 64, 3) uint8 differ by `bound` or more and are unlike."""
    return difference(before, after) >= bound and likeness(before, after) < config.max_likeness


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images of one shape, 0..255."""
    return float(cv2.norm(before, after, cv2.NORM_L1)) / before.size


def cut_bound(history: Sequence[float], config: ShotConfig) -> float:
    """The smallest difference (0..255) that is a cut after the differences `history`."""
    if not history:
        return config.min_difference
    # One flash gives two outliers, on and off; with one forgiven, 14 of 640 splices after a flash went unseen.
    return max(config.min_difference, config.ratio * sorted(history)[max(0, len(history) - 3)])


def likeness(before: np.ndarray, after: np.ndarray) -> float:
    """How well the blocks of `after` are found again nearby in `before`, RGB (64, 64, 3) uint8: 1 all, 0 none.

    Mean over blocks with texture of the best normalized correlation within REACH pixels, which ignores brightness,
    contrast and motion. 0 when less than two blocks have texture.
    """
    gray_before, gray_after = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
    found = []
    for top in range(0, SIDE, BLOCK):
        for left in range(0, SIDE, BLOCK):
            block = gray_after[top : top + BLOCK, left : left + BLOCK]
            if block.std() < MIN_TEXTURE:
                continue
            around = gray_before[max(0, top - REACH) : top + BLOCK + REACH, max(0, left - REACH) : left + BLOCK + REACH]
            found.append(float(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED).max()))
    return float(np.mean(found)) if len(found) > 1 else 0.0
