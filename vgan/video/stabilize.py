"""Stabilization of a window of frames: registration, warp to the first frame, fill from the preceding frame."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video import reference_stabilizer
from vgan.video.config import StabilizeConfig
from vgan.video.geometry import EVIDENCE_PX, IDENTITY, corner_distance, scale_of
from vgan.video.registration import Registration, register

MOVING = 12  # minimum change of a moving pixel, gray values: well above compression noise


def stabilize(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Remove camera motion from `frames` (T, H, W, 3) uint8.

    Every frame is mapped to the first one (paper section 3.1). With preset "off", or if registration fails and
    `config.keep_failed` is set, frames are only cropped and downscaled (`Evidence.stabilized` is False). No clip is
    rejected because of its scores; the caller applies the bounds.

    Returns:
        Clip (T, size, size, 3) uint8, and its scores.

    Raises:
        VideoError: stage "stabilize": as `register`, or for preset "reference" as `reference.register` and
            `reference.render`; also reason collapsed for a homography without an inverse.
    """
    if config.preset == "off":
        return crop_only(frames, size)
    try:
        if config.preset == "reference":
            return _by_reference(frames, size)
        return _by_paper(frames, config, size)
    except VideoError:
        if config.keep_failed:
            return crop_only(frames, size)
        raise


def crop_only(frames: np.ndarray, size: int) -> tuple[np.ndarray, ClipScores]:
    """Crop each frame to its center square and downscale it; the scores have default values for registration."""
    clip, _ = render(frames, np.tile(IDENTITY, (len(frames), 1, 1)), size)
    return clip, ClipScores(motion=mean_frame_difference(clip), moving_fraction=moving_fraction(clip), stabilized=False)


def _by_paper(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "paper"."""
    frames = downscale(frames, max(config.size, size))
    registration = register(np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]), config)
    clip, filled = render(frames, registration.transforms, size)
    return clip, compute_scores(registration, frames.shape[1], frames.shape[2], clip, filled)


def _by_reference(frames: np.ndarray, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "reference"."""
    registration = reference_stabilizer.register(frames)
    clip, filled = reference_stabilizer.render(frames, registration.transforms, size)
    try:
        return clip, compute_scores(registration, frames.shape[1], frames.shape[2], clip, filled)
    except np.linalg.LinAlgError as error:
        raise VideoError("stabilize", "collapsed", "the composed homography has no inverse") from error


def compute_scores(
    registration: Registration, height: int, width: int, clip: np.ndarray, filled: np.ndarray
) -> ClipScores:
    """Compute the scores of a registered window and its clip.

    Args:
        registration: transforms of the window's frames.
        height: height of these frames, pixels.
        width: width of these frames, pixels.
        clip: stabilized clip (T, H, W, 3) uint8.
        filled: share of filled pixels per frame, (T,), 0..1.
    """
    pairs = registration.pairs
    zooms = [scale_of(transform) for transform in registration.transforms]
    return ClipScores(
        residual_px=max((pair.residual_px for pair in pairs), default=0.0),
        inlier_ratio=min((pair.inlier_ratio for pair in pairs), default=1.0),
        num_matches=min((pair.num_matches for pair in pairs), default=0),
        scale_step=max(_zoom_or_inverse(after / before) for before, after in pairwise(zooms)),
        zoom=max(map(_zoom_or_inverse, zooms)),
        drift_px=registration.drift_px,
        photometric=max((pair.photometric for pair in pairs), default=0.0),
        filled_fraction=float(filled.max()),
        motion=mean_frame_difference(clip),
        moving_fraction=moving_fraction(clip),
        jitter_px=camera_movement_px(registration.transforms, height, width),
        stabilized=True,
    )


def _zoom_or_inverse(zoom: float) -> float:
    """Return the larger of a zoom factor and its inverse; inf for 0."""
    return max(zoom, 1 / zoom) if zoom > 0 else math.inf


def downscale(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Downscale `frames` (T, H, W, 3) uint8 by averaging to a short side of at most `short_side`; never enlarge.

    Frames are first halved as often as possible, which is exact and fast: 0.9 ms instead of 3.0 ms for 1280x720 to 128.
    """
    if min(frames.shape[1:3]) <= short_side:
        return frames
    return np.stack([_reduced(frame, short_side) for frame in frames])


def _reduced(frame: np.ndarray, short_side: int) -> np.ndarray:
    """Downscale one frame (H, W, 3) to a short side of `short_side`."""
    while min(frame.shape[:2]) >= 2 * short_side:
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
    scale = short_side / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def render(frames: np.ndarray, transforms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Warp `frames` (T, H, W, 3) by `transforms` (T, 3, 3) to the first frame's center square, downscaled to `size`.

    Each frame is resampled by one bilinear warp to an integer multiple of `size` that is at least the source's
    resolution, then averaged over blocks of pixels. A direct warp to `size` would cause aliasing that flickers when the
    camera moves. Block averages are fast, and without motion they equal area downscaling if `size` divides the source's
    short side.

    Pixels that no source pixel covers are copied from the preceding frame of the clip (the first frame covers all).

    Returns:
        Clip (T, size, size, 3) uint8, and the share (T,) of filled pixels per frame, 0..1.
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
            covered = source_coverage(np.linalg.inv(to_clip @ transforms[t]), height, width, size)
            np.copyto(clip[t], clip[t - 1], where=~covered[..., None])
            filled[t] = 1 - covered.mean()
    return clip, filled


def _crop(height: int, width: int, size: int) -> np.ndarray:
    """Return the transform (3, 3) from pixels of a frame to those of its center square at `size`.

    Pixel centers are at half units: output x corresponds to source left + (x + .5) / zoom - .5.
    """
    square = min(height, width)
    zoom = size / square
    left, top = (width - square) / 2, (height - square) / 2
    return np.array([[zoom, 0, (0.5 - left) * zoom - 0.5], [0, zoom, (0.5 - top) * zoom - 0.5], [0, 0, 1]])


def source_coverage(to_source: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Return the mask (size, size) bool of clip pixels that, with all adjacent pixels, are completely in the source.

    The adjacent pixels are a safety margin. `to_source` (3, 3) is affine, so over a square of pixels the extremes of
    each source coordinate are at the corners: its bounds are the sum of a term per column and a term per row, and no
    mask has to be warped. The margin is clipped at the clip's border, so that the identity covers the full picture.

    Args:
        to_source: transform (3, 3) from pixels of the clip to pixels of the source.
        height: height of the source, pixels.
        width: width of the source, pixels.
        size: height and width of the clip, pixels.
    """
    center = np.arange(size)
    low, high = np.maximum(center - 1.5, -0.5), np.minimum(center + 1.5, size - 0.5)
    inside = np.ones((size, size), bool)
    for (by_x, by_y, offset), side in zip(to_source[:2], (width, height), strict=True):
        min_ = np.minimum(by_x * low, by_x * high) + np.minimum(by_y * low, by_y * high)[:, None] + offset
        max_ = np.maximum(by_x * low, by_x * high) + np.maximum(by_y * low, by_y * high)[:, None] + offset
        inside &= (min_ > -0.5 - 1e-6) & (max_ < side - 0.5 + 1e-6)
    return inside


def mean_frame_difference(clip: np.ndarray) -> float:
    """Return the mean absolute difference (0..255) of adjacent frames of `clip` (T, H, W, 3) uint8."""
    return float(np.mean([cv2.norm(after, before, cv2.NORM_L1) / after.size for before, after in pairwise(clip)]))


def moving_fraction(clip: np.ndarray) -> float:
    """Return the share of pixels (0..1) of `clip` (T, H, W, 3) uint8 that change by more than MOVING per frame."""
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    return float(np.mean([(cv2.absdiff(after, before) > MOVING).mean() for before, after in pairwise(grays)]))


def camera_movement_px(transforms: np.ndarray, height: int, width: int) -> float:
    """Return the RMS motion of the picture's corners between adjacent frames, pixels at 128 px short side.

    Args:
        transforms: transforms (T, 3, 3) from the pixels of each frame to those of the first.
        height: height of the frames, pixels.
        width: width of the frames, pixels.
    """
    unit = EVIDENCE_PX / min(height, width)
    steps = [np.linalg.inv(before) @ after for before, after in pairwise(transforms)]
    distances = [corner_distance(step, IDENTITY, height, width) for step in steps]
    return unit * float(np.sqrt(np.mean(np.square(distances))))
