"""Stabilization of a window of frames: registration, warp to the first frame, fill from the preceding frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video import adaptive_registration, reference_stabilizer
from vgan.video.config import StabilizeConfig
from vgan.video.geometry import EVIDENCE_PX, IDENTITY, corner_distance, distortion, is_affine, scale_of
from vgan.video.global_motion import GlobalMotion, measure_global_motion
from vgan.video.point_tracks import overlay_mask
from vgan.video.registration import Registration, register

MOVING = 12  # minimum change of a moving pixel, gray values: well above compression noise
STEADY_PX, STEADY_AGREEMENT = 0.15, 0.5  # of a clip for which no other hypothesis is tested
# A camera that stood still must explain the window better than its registration by so much: held ones move a little.
STILL_ADVANTAGE_PX = 0.15
# Burnt-in graphics are suspected if the rest of the picture, at least BEHIND_TEXTURED of its blocks, moves as one.
BEHIND_PX, BEHIND_AGREEMENT, BEHIND_TEXTURED = 0.25, 0.4, 0.15
BEHIND_FAST_PX = 1.5  # motion that is beyond the range of the measure, so that its blocks need not agree
BEHIND_STEADY_PX, BEHIND_STEADY_AGREEMENT = 0.35, 0.6  # of the picture around the graphics after registration
STATIC_PX = 0.2  # maximum global motion of a clip whose camera stood still, pixels at 128 px


@dataclass(frozen=True)
class Candidate:
    """A clip of a window by one hypothesis about the camera's motion.

    Attributes:
        clip: (T, size, size, 3) uint8.
        covered: (T, size, size) bool, False where pixels are filled.
        registration: transforms of the window's frames; None if the hypothesis is a camera that stood still.
        motion: global motion that remains in the clip.
        overlay: share of the textured pixels that was excluded as burnt-in graphics, 0..1.
    """

    clip: np.ndarray
    covered: np.ndarray
    registration: Registration | None
    motion: GlobalMotion
    overlay: float = 0.0

    @property
    def is_steady(self) -> bool:
        """Return True if nothing better is to be expected from another hypothesis."""
        return self.motion.rms_px <= STEADY_PX and self.motion.agreement >= STEADY_AGREEMENT


def stabilize(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Remove camera motion from `frames` (T, H, W, 3) uint8.

    Every frame is mapped to the first one (paper section 3.1). With preset "off", or if registration fails and
    `config.keep_failed` is set, frames are only cropped and downscaled (`ClipScores.stabilized` is False). No clip is
    rejected because of its scores; the caller applies the bounds.

    Returns:
        Clip (T, size, size, 3) uint8, and its scores.

    Raises:
        VideoError: stage "stabilize", for preset "paper" as `register`, for preset "reference" as
            `reference.register` and `reference.render`; also reason collapsed for a homography without an inverse.
            Preset "adaptive" raises none: a window that cannot be registered has registration "failed" in its scores.
    """
    if config.preset == "off":
        return crop_only(frames, size)
    if config.preset == "adaptive":
        return _adaptive(frames, config, size)
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


def _adaptive(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "adaptive": test hypotheses about the camera's motion by their result.

    1. If the window has still texture and the rest of the picture moves as one: a camera that moves behind burnt-in
       graphics.
    2. A camera that moves.
    3. If that does not give a steady clip: a camera that stands still.

    The clip with the least global motion is used. If still texture could be graphics, the rest of the picture must be
    steady too.
    """
    frames = downscale(frames, max(config.size, size))
    height, width = frames.shape[1:3]
    grays = _grays(frames)
    mask, share = overlay_mask(grays)
    still = None
    if mask is not None:
        still = _unmoved(frames, size)
        behind = measure_global_motion(still.clip, ~_warped_mask(mask, IDENTITY[None], height, width, size))
        if not _moves_as_one(behind):
            mask = None
    if mask is not None:
        best = _registered(frames, grays, config, size, mask, share)
        if best is not None and _is_steady_behind(best.motion):
            return best.clip, _scores_of(best, height, width)
    best = _registered(frames, grays, config, size)
    if best is None or not best.is_steady:
        still = still or _unmoved(frames, size)
        if best is None or still.motion.rms_px < best.motion.rms_px - STILL_ADVANTAGE_PX:
            best = still
    if mask is not None:
        transforms = best.registration.transforms if best.registration else IDENTITY[None]
        behind = measure_global_motion(best.clip, ~_warped_mask(mask, transforms, height, width, size) & best.covered)
        if behind.rms_px > best.motion.rms_px and _moves_as_one(behind):
            best = replace(best, motion=behind)
    return best.clip, _scores_of(best, height, width)


def _moves_as_one(motion: GlobalMotion) -> bool:
    """Return True if the picture around still texture moves like a scene and not like single objects."""
    is_coherent = motion.agreement >= BEHIND_AGREEMENT or motion.rms_px >= BEHIND_FAST_PX
    return motion.rms_px > BEHIND_PX and motion.textured >= BEHIND_TEXTURED and is_coherent


def _is_steady_behind(motion: GlobalMotion) -> bool:
    """Return True if the registration of the picture around the graphics made it steady."""
    return motion.rms_px <= BEHIND_STEADY_PX and motion.agreement >= BEHIND_STEADY_AGREEMENT


def _unmoved(frames: np.ndarray, size: int) -> Candidate:
    """Crop and downscale a window (T, H, W, 3) uint8: the clip of a camera that stood still."""
    clip, covered = render(frames, np.tile(IDENTITY, (len(frames), 1, 1)), size)
    return Candidate(clip, covered, None, measure_global_motion(clip))


def _registered(
    frames: np.ndarray,
    grays: np.ndarray,
    config: StabilizeConfig,
    size: int,
    mask: np.ndarray | None = None,
    overlay: float = 0.0,
) -> Candidate | None:
    """Register, render and measure a window; None if it cannot be registered.

    Args:
        frames: (T, H, W, 3) uint8.
        grays: the same frames, (T, H, W) uint8.
        config: settings of the registration.
        size: height and width of the clip, pixels.
        mask: burnt-in graphics (H // 2, W // 2) bool, neither registered nor measured; None: none.
        overlay: share of the textured pixels in `mask`, 0..1.
    """
    try:
        registration = adaptive_registration.register(grays, config, mask)
    except VideoError:
        return None
    clip, covered = render(frames, registration.transforms, size)
    measured = covered
    if mask is not None:
        height, width = grays.shape[1:]
        measured = covered & ~_warped_mask(mask, registration.transforms, height, width, size)
    return Candidate(clip, covered, registration, measure_global_motion(clip, measured), overlay)


def _warped_mask(mask: np.ndarray, transforms: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Return where the pixels of a mask (H // 2, W // 2) of all frames are in their clip, (T, size, size) bool."""
    full = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    to_clip = _crop(height, width, size)
    warped = [
        cv2.warpPerspective(full, to_clip @ transform, (size, size), flags=cv2.INTER_LINEAR) for transform in transforms
    ]
    return np.stack(warped) > 0


def _scores_of(candidate: Candidate, height: int, width: int) -> ClipScores:
    """Compute the scores of the chosen candidate of a window of `height` x `width` pixels."""
    registration = candidate.registration
    if registration is None:
        differences = frame_differences(candidate.clip)
        scores = ClipScores(
            registration="static" if candidate.motion.rms_px <= STATIC_PX else "failed",
            photometric=max(differences),
            motion=float(np.mean(differences)),
            moving_fraction=moving_fraction(candidate.clip),
            stabilized=False,
        )
    else:
        scores = compute_scores(registration, height, width, candidate.clip, candidate.covered)
        kind = "homography" if registration.num_homographies else "similarity"
        scores = replace(scores, registration=kind, overlay=candidate.overlay)
    return _with_motion(scores, candidate.motion)


def _by_paper(frames: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "paper"."""
    frames = downscale(frames, max(config.size, size))
    registration = register(_grays(frames), config)
    clip, covered = render(frames, registration.transforms, size)
    scores = compute_scores(registration, frames.shape[1], frames.shape[2], clip, covered)
    return clip, _with_motion(scores, measure_global_motion(clip, covered))


def _by_reference(frames: np.ndarray, size: int) -> tuple[np.ndarray, ClipScores]:
    """Stabilize `frames` with preset "reference"."""
    registration = reference_stabilizer.register(frames)
    clip, covered = reference_stabilizer.render(frames, registration.transforms, size)
    try:
        scores = compute_scores(registration, frames.shape[1], frames.shape[2], clip, covered)
    except np.linalg.LinAlgError as error:
        raise VideoError("stabilize", "collapsed", "the composed homography has no inverse") from error
    return clip, _with_motion(replace(scores, registration="homography"), measure_global_motion(clip, covered))


def _grays(frames: np.ndarray) -> np.ndarray:
    """Convert frames (T, H, W, 3) uint8 to gray images (T, H, W) uint8."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def _with_motion(scores: ClipScores, motion: GlobalMotion) -> ClipScores:
    """Add the global motion that remains in a clip to its scores."""
    return replace(scores, residual_motion_px=motion.rms_px, agreement=motion.agreement)


def compute_scores(
    registration: Registration, height: int, width: int, clip: np.ndarray, covered: np.ndarray
) -> ClipScores:
    """Compute the scores of a registered window and its clip.

    Args:
        registration: transforms of the window's frames.
        height: height of these frames, pixels.
        width: width of these frames, pixels.
        clip: stabilized clip (T, H, W, 3) uint8.
        covered: pixels (T, H, W) bool of the clip that are not filled.
    """
    pairs = registration.pairs
    unit = EVIDENCE_PX / min(height, width)
    zooms = [scale_of(transform) for transform in registration.transforms]
    return ClipScores(
        registration="similarity",
        residual_px=max((pair.residual_px for pair in pairs), default=0.0),
        inlier_ratio=min((pair.inlier_ratio for pair in pairs), default=1.0),
        num_matches=min((pair.num_matches for pair in pairs), default=0),
        scale_step=max(_zoom_or_inverse(after / before) for before, after in pairwise(zooms)),
        zoom=max(map(_zoom_or_inverse, zooms)),
        drift_px=registration.drift_px,
        distortion_px=unit * max(distortion(transform, height, width) for transform in registration.transforms),
        photometric=max((pair.photometric for pair in pairs), default=0.0),
        filled_fraction=1 - float(covered.mean((1, 2)).min()),
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
        Clip (T, size, size, 3) uint8, and where it shows the source, (T, size, size) bool; the rest is filled.
    """
    height, width = frames.shape[1:3]
    square = min(height, width)
    factor = math.ceil(square / size)
    canvas = size * factor
    crop = _crop(height, width, canvas)
    to_clip = _crop(height, width, size)
    clip = np.empty((len(frames), size, size, 3), np.uint8)
    covered = np.ones((len(frames), size, size), bool)
    options = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    for t, frame in enumerate(frames):
        transform = crop @ transforms[t]
        if is_affine(transforms[t]):
            warped = cv2.warpAffine(frame, transform[:2], (canvas, canvas), **options)
        else:
            warped = cv2.warpPerspective(frame, transform, (canvas, canvas), **options)
        clip[t] = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
        if t > 0:
            covered[t] = source_coverage(np.linalg.inv(to_clip @ transforms[t]), height, width, size)
            np.copyto(clip[t], clip[t - 1], where=~covered[t, ..., None])
    return clip, covered


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

    The adjacent pixels are a safety margin, which is clipped at the clip's border so that the identity covers the full
    picture. Over a square of pixels the extremes of each source coordinate are at the corners; if `to_source` is
    affine, they are the sum of a term per column and a term per row.

    Args:
        to_source: homography (3, 3) from pixels of the clip to pixels of the source.
        height: height of the source, pixels.
        width: width of the source, pixels.
        size: height and width of the clip, pixels.
    """
    center = np.arange(size)
    low, high = np.maximum(center - 1.5, -0.5), np.minimum(center + 1.5, size - 0.5)
    inside = np.ones((size, size), bool)
    if is_affine(to_source):
        for (by_x, by_y, offset), side in zip(to_source[:2], (width, height), strict=True):
            min_ = np.minimum(by_x * low, by_x * high) + np.minimum(by_y * low, by_y * high)[:, None] + offset
            max_ = np.maximum(by_x * low, by_x * high) + np.maximum(by_y * low, by_y * high)[:, None] + offset
            inside &= (min_ > -0.5 - 1e-6) & (max_ < side - 0.5 + 1e-6)
        return inside
    for x in (low, high):
        for y in (low[:, None], high[:, None]):
            at_x, at_y, depth = (by_x * x + by_y * y + offset for by_x, by_y, offset in to_source)
            inside &= depth > 0
            for at, side in ((at_x, width), (at_y, height)):
                inside &= (at > (-0.5 - 1e-6) * depth) & (at < (side - 0.5 + 1e-6) * depth)
    return inside


def frame_differences(clip: np.ndarray) -> list[float]:
    """Return the mean absolute difference (0..255) of each pair of adjacent frames of `clip` (T, H, W, 3) uint8."""
    return [cv2.norm(after, before, cv2.NORM_L1) / after.size for before, after in pairwise(clip)]


def mean_frame_difference(clip: np.ndarray) -> float:
    """Return the mean absolute difference (0..255) of adjacent frames of `clip` (T, H, W, 3) uint8."""
    return float(np.mean(frame_differences(clip)))


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
