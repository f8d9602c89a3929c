"""Hard cuts: where neighbouring frames differ much, and much more than they did just before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from vgan.config import ShotConfig
from vgan.video.decode import Frame

SIDE = 64  # pixels: small enough to be cheap and blind to detail, and the size the bounds were measured at


def split_shots(frames: Iterable[tuple[int, Frame]], config: ShotConfig) -> Iterator[tuple[int, Frame]]:
    """(run, frame) becomes (shot, frame); shots count from 0 and end at a new run, a cut or a change of picture size.

    A cut is a mean absolute RGB difference at 64x64 of at least `config.min_difference` that is also `config.ratio`
    times the second largest of the last `config.history` differences, so that fast motion and flicker, which differ
    much all the time, do not cut. The frame after it must differ as much from the frame before it, so a flash does not
    cut either; for that, a frame in doubt is held back until the next one is seen. Fades and dissolves are not found.
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
            if broken or difference(settled, small) >= bound:
                shot += 1
                settled = doubtful_small
            for held in doubtful:
                yield shot, held
            doubtful = []
        if broken:
            shot += 1
        elif last is not None:
            change = difference(settled, small)
            bound = cut_bound(history, config)
            history.append(change)  # a cut's too: one outlier is forgiven, a run of them is flicker
            if change >= bound:
                doubtful, doubtful_small = [frame], small
        last, last_run = frame, run
        if not doubtful:
            settled = small
            yield shot, frame
    for held in doubtful:
        yield shot + 1, held


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images of one shape, 0..255."""
    return float(cv2.norm(before, after, cv2.NORM_L1)) / before.size


def cut_bound(history: Sequence[float], config: ShotConfig) -> float:
    """The smallest difference (0..255) that is a cut after the differences `history`."""
    if len(history) < 2:
        return config.min_difference
    return max(config.min_difference, config.ratio * sorted(history)[-2])
