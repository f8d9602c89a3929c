"""A window of frames becomes a steady square clip: register, warp onto the first frame, fill from the frame before."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from vgan.config import StabilizeConfig
from vgan.errors import BadVideo
from vgan.records import Evidence
from vgan.video.register import Pair, compose, register, registration_images


def stabilize(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, Evidence]:
    """Remove camera motion from `frames` (T, H, W, 3) uint8: (T, size, size, 3) uint8 and how well it went.

    Every frame is mapped onto the first by the composed similarities of neighbouring frames (paper section 3.1). With
    preset "off", or a failure under `config.keep_failed`, frames are only cropped and reduced; the evidence says so.

    Raises:
        BadVideo: stage "stabilize": what `register` raises, and too_much_fill.
    """
    if config.preset == "off":
        return unstabilized(frames, size)
    try:
        return _registered(frames, config, size)
    except BadVideo:
        if config.keep_failed:
            return unstabilized(frames, size)
        raise


def unstabilized(frames: np.ndarray, size: int) -> tuple[np.ndarray, Evidence]:
    """The centre square of each frame, reduced, with evidence that claims nothing."""
    clip, _ = render(frames, np.tile(np.eye(3), (len(frames), 1, 1)), size)
    return clip, Evidence(motion=motion(clip), stabilized=False)


def _registered(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, Evidence]:
    grays, scale = registration_images(frames, config.size)
    pairs = register(grays, config)
    clip, filled = render(frames, at_frame_size(compose(pairs), scale), size)
    worst_fill = float(filled.max())
    if worst_fill > config.max_filled:
        detail = f"{worst_fill:.2f} of frame {int(filled.argmax())}; at most {config.max_filled:g}"
        raise BadVideo("stabilize", "too_much_fill", detail)
    height, width = grays[0].shape
    return clip, Evidence(
        residual_px=max(pair.residual_px for pair in pairs),
        inlier_ratio=min(pair.inlier_ratio for pair in pairs),
        num_matches=min(pair.num_matches for pair in pairs),
        photometric=max(pair.photometric for pair in pairs),
        filled_fraction=worst_fill,
        motion=motion(clip),
        jitter_px=camera_movement_px(pairs, height, width),
        stabilized=True,
    )


def at_frame_size(transforms: np.ndarray, scale: float) -> np.ndarray:
    """Similarities (T, 3, 3) between images reduced by `scale`, as ones between full frames (pixel centres at .5)."""
    reduce = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    return np.linalg.inv(reduce) @ transforms @ reduce


def render(frames: np.ndarray, transforms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp `frames` (T, H, W, 3) by `transforms` (T, 3, 3) onto the first frame's centre square, reduced to `size`.

    Each frame is resampled by one bilinear warp onto a whole multiple of `size` that is at least the source's
    resolution, then averaged over whole blocks of pixels. Warping straight to `size` would alias, with a pattern that
    flickers as the camera moves; block averages cost little, and without motion equal plain area reduction when sizes
    divide.

    Pixels that no source pixel covers are taken from the frame rendered before (the first frame covers all).

    Returns:
        Clip (T, size, size, 3) uint8, and the share (T,) of each frame's pixels that were filled, 0..1.
    """
    height, width = frames.shape[1:3]
    square = min(height, width)
    factor = math.ceil(square / size)
    canvas = size * factor
    zoom = canvas / square
    # Pixel centres lie at half units: output x covers source left + (x + .5) / zoom - .5.
    crop = np.array(
        [
            [zoom, 0, (0.5 - (width - square) / 2) * zoom - 0.5],
            [0, zoom, (0.5 - (height - square) / 2) * zoom - 0.5],
            [0, 0, 1],
        ]
    )
    inside = np.full((height, width), 255, np.uint8)
    clip = np.empty((len(frames), size, size, 3), np.uint8)
    filled = np.zeros(len(frames))
    for t, frame in enumerate(frames):
        affine = (crop @ transforms[t])[:2]
        warped = cv2.warpAffine(
            frame, affine, (canvas, canvas), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        clip[t] = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
        if t > 0:
            own = _own_pixels(cv2.warpAffine(inside, affine, (canvas, canvas), flags=cv2.INTER_LINEAR), size)
            clip[t][~own] = clip[t - 1][~own]
            filled[t] = 1 - own.mean()
    return clip, filled


def _own_pixels(coverage: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool: pixels wholly covered by the source, one more taken off along its border for safety.

    The identity must not lose the picture's own edge, where the warp blends with nothing: hence the bound of one half.
    """
    covered = cv2.resize((coverage >= 128).astype(np.uint8) * 255, (size, size), interpolation=cv2.INTER_AREA) == 255
    return cv2.erode(covered.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def motion(clip: np.ndarray) -> float:
    """Mean absolute difference (0..255) of neighbouring frames of `clip` (T, H, W, 3) uint8."""
    return float(np.mean([cv2.norm(after, before, cv2.NORM_L1) / after.size for before, after in pairwise(clip)]))


def camera_movement_px(pairs: list[Pair], height: int, width: int) -> float:
    """RMS distance that the picture's four corners move between neighbouring frames, in pixels at registration size."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    moved = np.stack([pair.transform @ corners - corners for pair in pairs])[:, :2]  # (T - 1, 2, 4)
    return float(np.sqrt((moved**2).sum(1).mean()))
