"""Shot detection: hard cuts by the difference of adjacent frames, its ratio to earlier ones, and block correlation.

Measured on 64 px frames at 25 per second (tests/benchmarks/shots.py), one thread, compared to the published weights of
TransNetV2 with a threshold of 0.5:

                                      this module       TransNetV2
    frames per second                 5,000 to 7,400    32 to 42
    splices of two UCF101 videos      398 of 399        24 of 24 (the first of the same)
      cuts elsewhere in those reels   2                 0
    bikes.mp4, scene_cuts.mp4         5 and 5 of 5      5 and 3 of 5 (the latter shows the film beside still graphs)
    uncut UCF101 with a false cut     0 of 136 videos   5 of 136 videos
    dissolves over 5 to 25 frames     0 of 200          7 of 10

Of 30 excerpts of UCF101, a flash of one frame cuts none, of two frames (white, black, another scene) one and of three
frames 26 to 30; whip pans with motion blur of up to 32 of 160 pixels per frame cut one, of 64 pixels two.

A true cut and a jump over lost frames in two of the 136 videos do not count as false. The bounds of this module were
chosen on the same videos, none for TransNetV2. TransNetV2 is a hundred times slower, slower than SIFT, and therefore
not used. Missed cuts fail registration (930 of 930 splices), and `vgan.video.dissolve_detection` detects dissolves.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vgan.video.config import ShotConfig
from vgan.video.decoding.decode import Frame

SIDE = 64  # pixels: fast and insensitive to detail; the bounds were measured at this size
BLOCK = 16  # pixels at SIDE
REACH = 8  # search radius, pixels at SIDE: a pan over the full picture in 8 frames, or a third of a second
FLASH_FRAMES = 2  # frames of a flash, or of blank or corrupt frames, that do not make a cut
MIN_TEXTURE = 3.0  # minimum standard deviation of gray values; the correlation of flatter blocks is mostly noise


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame of a run with its repeats by the resampling, and its picture at 64x64."""

    run: int
    frames: list[Frame]
    small: np.ndarray

    def may_share_shot(self, other: _Picture) -> bool:
        """Return True if two pictures can belong to one shot, by their runs and sizes."""
        return self.run == other.run and self.frames[0].image.shape == other.frames[0].image.shape


def split_shots(frames: Iterable[tuple[int, Frame]], config: ShotConfig) -> Iterator[tuple[int, Frame]]:
    """Split frames into shots: convert (run, frame) to (shot, frame), with shots counted from 0.

    A shot ends at a new run, a cut or a change of picture size. A cut is a mean absolute RGB difference at 64x64 of at
    least `config.min_difference`, and of `config.ratio` times the third largest of the last `config.history`
    differences (fast motion and flicker cause large differences all the time), between pictures with different blocks
    (`block_similarity`; exposure jumps, camera flashes and fast pans change every pixel but preserve the blocks). The
    next FLASH_FRAMES frames must differ from the frame before the cut as well, so that flashes and corrupt or blank
    frames do not cause one. Fades and dissolves are not detected.
    """
    history: deque[float] = deque(maxlen=config.history_frames)
    shot = 0
    last: _Picture | None = None
    confirmed = np.zeros(0, np.uint8)  # at 64x64, the last frame that is not part of a flash
    for picture, following in _with_following(_pictures(frames)):
        if last is None or not picture.may_share_shot(last):
            shot += last is not None
            confirmed = picture.small
        else:
            bound = cut_bound(history, config)
            history.append(difference(confirmed, picture.small))  # at cuts too: two outliers are ignored
            changed = is_cut(confirmed, picture.small, bound, config)
            cut = changed and all(is_cut(confirmed, after.small, bound, config) for after in following)
            shot += cut
            if cut or not changed:
                confirmed = picture.small
        last = picture
        for frame in picture.frames:
            yield shot, frame


def _pictures(frames: Iterable[tuple[int, Frame]]) -> Iterator[_Picture]:
    """Yield each frame once, with its repeats by the resampling, whose difference of 0 is not measured."""
    picture: _Picture | None = None
    for run, frame in frames:
        if picture is not None and frame is picture.frames[0]:
            picture.frames.append(frame)
            continue
        if picture is not None:
            yield picture
        picture = _Picture(run, [frame], cv2.resize(frame.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    if picture is not None:
        yield picture


def _with_following(pictures: Iterator[_Picture]) -> Iterator[tuple[_Picture, list[_Picture]]]:
    """Yield each picture with up to FLASH_FRAMES pictures after it, as far as they can belong to its shot."""
    waiting: deque[_Picture] = deque()
    for picture in itertools.chain(pictures, [None] * FLASH_FRAMES):
        if picture is not None:
            waiting.append(picture)
        if waiting and (picture is None or len(waiting) > FLASH_FRAMES):
            first = waiting.popleft()
            yield first, list(itertools.takewhile(first.may_share_shot, waiting))


def is_cut(before: np.ndarray, after: np.ndarray, bound: float, config: ShotConfig) -> bool:
    """Return True if two RGB images (64, 64, 3) uint8 differ by at least `bound` and have different blocks."""
    return difference(before, after) >= bound and block_similarity(before, after) < config.max_block_similarity


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference, 0..255, of two uint8 images of equal shape."""
    return float(cv2.norm(before, after, cv2.NORM_L1)) / before.size


def cut_bound(history: Sequence[float], config: ShotConfig) -> float:
    """Return the minimum difference (0..255) of a cut after the differences `history`."""
    if not history:
        return config.min_difference
    # A flash causes two outliers, on and off; with only one ignored, 14 of 640 splices after a flash were missed.
    return max(config.min_difference, config.difference_ratio * sorted(history)[max(0, len(history) - 3)])


def block_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Return the block similarity of two RGB images (64, 64, 3) uint8: 1 if all blocks of `after` match in `before`.

    It is the mean, over blocks with texture, of the maximum normalized correlation within REACH pixels, which is
    invariant to brightness, contrast and small motion. It is 0 if less than two blocks have texture.
    """
    gray_before, gray_after = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
    correlations = []
    for top in range(0, SIDE, BLOCK):
        for left in range(0, SIDE, BLOCK):
            block = gray_after[top : top + BLOCK, left : left + BLOCK]
            if block.std() < MIN_TEXTURE:
                continue
            around = gray_before[max(0, top - REACH) : top + BLOCK + REACH, max(0, left - REACH) : left + BLOCK + REACH]
            correlations.append(float(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED).max()))
    return float(np.mean(correlations)) if len(correlations) > 1 else 0.0
