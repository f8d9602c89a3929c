"""A window of frames becomes a steady square clip: register, warp onto the first frame, fill from the frame before."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from vgan.config import StabilizeConfig
from vgan.errors import BadVideo
from vgan.records import Evidence
from vgan.video import reference
from vgan.video.register import EVIDENCE_PX, IDENTITY, Registration, corner_distance, register, scale_of

MOVING = 12  # gray values that a pixel of the clip must change by to count as moving: well above compression's noise


def stabilize(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, Evidence]:
    """Remove camera motion from `frames` (T, H, W, 3) uint8: (T, size, size, 3) uint8 and how well it went.

    Every frame is mapped onto the first (paper section 3.1). With preset "off", or where registration is impossible
    and `config.keep_failed` is set, frames are only cropped and reduced; the evidence says so. How good is good enough
    is for the caller to say: nothing is refused here that could be judged from the evidence.

    Raises:
        BadVideo: stage "stabilize": what `register` raises, or for preset "reference" `reference.register`.
    """
    if config.preset == "off":
        return unstabilized(frames, size)
    try:
        if config.preset == "reference":
            return _by_reference(frames, size)
        return _by_paper(frames, config, size)
    except BadVideo:
        if config.keep_failed:
            return unstabilized(frames, size)
        raise


def unstabilized(frames: np.ndarray, size: int) -> tuple[np.ndarray, Evidence]:
    """The centre square of each frame, reduced, with evidence that claims nothing."""
    clip, _ = render(frames, np.tile(IDENTITY, (len(frames), 1, 1)), size)
    return clip, Evidence(motion=motion(clip), moving_fraction=moving_fraction(clip), stabilized=False)


def _by_paper(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, Evidence]:
    frames = reduced(frames, max(config.size, size))
    registration = register(np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]), config)
    clip, filled = render(frames, registration.transforms, size)
    return clip, evidence_of(registration, frames.shape[1], frames.shape[2], clip, filled)


def _by_reference(frames: np.ndarray, size: int) -> tuple[np.ndarray, Evidence]:
    registration = reference.register(frames)
    clip, filled = reference.render(frames, registration.transforms, size)
    try:
        return clip, evidence_of(registration, frames.shape[1], frames.shape[2], clip, filled)
    except np.linalg.LinAlgError as fault:
        raise BadVideo("stabilize", "collapsed", "a chain of homographies without an inverse") from fault


def evidence_of(registration: Registration, height: int, width: int, clip: np.ndarray, filled: np.ndarray) -> Evidence:
    """The scores of a registered window of `height` x `width` working pixels and the clip (T, H, W, 3) made of it."""
    pairs = registration.pairs
    zooms = [scale_of(transform) for transform in registration.transforms]
    return Evidence(
        residual_px=max((pair.residual_px for pair in pairs), default=0.0),
        inlier_ratio=min((pair.inlier_ratio for pair in pairs), default=1.0),
        num_matches=min((pair.num_matches for pair in pairs), default=0),
        scale_step=max(_zoom_or_inverse(after / before) for before, after in pairwise(zooms)),
        zoom=max(map(_zoom_or_inverse, zooms)),
        drift_px=registration.drift_px,
        photometric=max((pair.photometric for pair in pairs), default=0.0),
        filled_fraction=float(filled.max()),
        motion=motion(clip),
        moving_fraction=moving_fraction(clip),
        jitter_px=camera_movement_px(registration.transforms, height, width),
        stabilized=True,
    )


def _zoom_or_inverse(zoom: float) -> float:
    return max(zoom, 1 / zoom) if zoom > 0 else math.inf


def reduced(frames: np.ndarray, short_side: int) -> np.ndarray:
    """`frames` (T, H, W, 3) uint8 with a short side of at most `short_side`, by averaging; never enlarged.

    Halved as often as possible first, which is exact and fast: 0.9 ms instead of 3.0 for 1280x720 to 128.
    """
    if min(frames.shape[1:3]) <= short_side:
        return frames
    return np.stack([_reduced(frame, short_side) for frame in frames])


def _reduced(frame: np.ndarray, short_side: int) -> np.ndarray:
    while min(frame.shape[:2]) >= 2 * short_side:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    scale = short_side / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


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
    crop = _crop(height, width, canvas)
    to_clip = _crop(height, width, size)
    clip = np.empty((len(frames), size, size, 3), np.uint8)
    filled = np.zeros(len(frames))
    for t, frame in enumerate(frames):
        affine = (crop @ transforms[t])[:2]
        warped = cv2.warpAffine(
            frame, affine, (canvas, canvas), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        clip[t] = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
        if t > 0:
            own = own_pixels(np.linalg.inv(to_clip @ transforms[t]), height, width, size)
            np.copyto(clip[t], clip[t - 1], where=~own[..., None])
            filled[t] = 1 - own.mean()
    return clip, filled


def _crop(height: int, width: int, size: int) -> np.ndarray:
    """(3, 3): pixels of a frame to those of its centre square at `size`.

    Pixel centres lie at half units: output x covers source left + (x + .5) / zoom - .5.
    """
    square = min(height, width)
    zoom = size / square
    left, top = (width - square) / 2, (height - square) / 2
    return np.array([[zoom, 0, (0.5 - left) * zoom - 0.5], [0, zoom, (0.5 - top) * zoom - 0.5], [0, 0, 1]])


def own_pixels(to_source: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """(size, size) bool: pixels of a clip that lie wholly in the source, as do those around them, for safety.

    `to_source` (3, 3) is affine: over a square of pixels each source coordinate is extreme at a corner, so its bounds
    are sums of a part by columns and a part by rows, and no mask need be warped. The clip's own border counts as far as
    it goes: the identity must not lose the picture's edge.
    """
    middle = np.arange(size)
    low, high = np.maximum(middle - 1.5, -0.5), np.minimum(middle + 1.5, size - 0.5)
    inside = np.ones((size, size), bool)
    for (by_x, by_y, offset), side in zip(to_source[:2], (width, height), strict=True):
        least = np.minimum(by_x * low, by_x * high) + np.minimum(by_y * low, by_y * high)[:, None] + offset
        most = np.maximum(by_x * low, by_x * high) + np.maximum(by_y * low, by_y * high)[:, None] + offset
        inside &= (least > -0.5 - 1e-6) & (most < side - 0.5 + 1e-6)
    return inside


def motion(clip: np.ndarray) -> float:
    """Mean absolute difference (0..255) of neighbouring frames of `clip` (T, H, W, 3) uint8."""
    return float(np.mean([cv2.norm(after, before, cv2.NORM_L1) / after.size for before, after in pairwise(clip)]))


def moving_fraction(clip: np.ndarray) -> float:
    """Share of pixels of `clip` (T, H, W, 3) uint8 that change by more than MOVING gray values to the next frame."""
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    return float(np.mean([(cv2.absdiff(after, before) > MOVING).mean() for before, after in pairwise(grays)]))


def camera_movement_px(transforms: np.ndarray, height: int, width: int) -> float:
    """RMS distance, in pixels at 128 px short side, that the picture's corners move between neighbouring frames."""
    unit = EVIDENCE_PX / min(height, width)
    steps = [np.linalg.inv(before) @ after for before, after in pairwise(transforms)]
    moved = [corner_distance(step, IDENTITY, height, width) for step in steps]
    return unit * float(np.sqrt(np.mean(np.square(moved))))
