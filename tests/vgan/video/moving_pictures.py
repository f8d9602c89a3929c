"""Synthetic videos with known camera motion."""

from __future__ import annotations

import cv2
import numpy as np

HEIGHT, WIDTH = 128, 170  # size of UCF101's 240x320 at the default decode size


def make_texture(seed: int, size: int = 420) -> np.ndarray:
    """Create a texture (size, size, 3) uint8 of noise at several scales, each with corners for SIFT."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3))
    for sigma, weight in ((1.5, 1.0), (3.0, 1.5), (8.0, 2.0), (24.0, 2.0)):
        layer = cv2.GaussianBlur(rng.normal(size=(size, size, 3)), (0, 0), sigma)
        image += weight * layer / layer.std()
    return np.clip(128 + 22 * image, 0, 255).astype(np.uint8)


def camera(shift: tuple[float, float], degrees: float = 0.0, zoom: float = 1.0) -> np.ndarray:
    """Return the transform (3, 3) from frame to scene pixels of a camera at the scene's center plus `shift` pixels."""
    angle = np.deg2rad(degrees)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    to_center = np.array([[1, 0, -(WIDTH - 1) / 2], [0, 1, -(HEIGHT - 1) / 2], [0, 0, 1]])
    translation = np.array([[1, 0, 209.5 + shift[0]], [0, 1, 209.5 + shift[1]], [0, 0, 1]])
    return translation @ rotation @ to_center


def film(scenes: list[np.ndarray], cameras: list[np.ndarray]) -> np.ndarray:
    """Render frames (T, HEIGHT, WIDTH, 3) uint8; frame t is scenes[t] from cameras[t]."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.stack(
        [cv2.warpAffine(s, c[:2], (WIDTH, HEIGHT), flags=flags) for s, c in zip(scenes, cameras, strict=True)]
    )


def shaky_cameras(seed: int, num_frames: int, shift_px: float = 4.0) -> list[np.ndarray]:
    """Return the transforms of a hand-held camera: random shift, rotation (1 degree) and zoom (1 %) per frame."""
    rng = np.random.default_rng(seed)
    return [
        camera(tuple(rng.normal(0, shift_px, 2)), rng.normal(0, 1.0), 1 + rng.normal(0, 0.01))
        for _ in range(num_frames)
    ]


def shaken(
    frames: np.ndarray, seed: int, shift_px: float = 6.0, degrees: float = 2.0, zoom: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Move each of `frames` (T, H, W, 3) uint8 of a static camera by a random similarity and downscale to 128 px.

    A margin is cropped, so that every picture is full. The first frame is not moved.

    Returns:
        Frames (T, 128, W', 3) uint8, and transforms (T, 3, 3) from their pixels to those of the first frame.
    """
    rng = np.random.default_rng(seed)
    num_frames, height, width = frames.shape[:3]
    margin = 0.12  # 6 px, 2 degrees and 2 % move a corner by 12 of 128 px
    zoom_in = 256 / (height * (1 - 2 * margin))
    wide = round(width * (1 - 2 * margin) * zoom_in / 2) * 2
    view = np.array([[zoom_in, 0, -zoom_in * width * margin], [0, zoom_in, -zoom_in * height * margin], [0, 0, 1]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # pixel centers to corners
    view = np.linalg.inv(half) @ view @ half
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    to_center = np.array([[1, 0, -(wide / 2 - 1) / 2], [0, 1, -63.5], [0, 0, 1]])
    moved, truth = [], []
    for t in range(num_frames):
        x, y, turn, size = rng.uniform(-1, 1, 4) if t else np.zeros(4)
        angle, scale = np.deg2rad(degrees * turn), 1 + zoom * size
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        step = np.array([[cos, -sin, shift_px * x], [sin, cos, shift_px * y], [0, 0, 1]])
        step = np.linalg.inv(to_center) @ step @ to_center
        affine = (double @ step @ np.linalg.inv(double) @ view)[:2]
        large = cv2.warpAffine(frames[t], affine, (wide, 256), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        moved.append(cv2.resize(large, (wide // 2, 128), interpolation=cv2.INTER_AREA))
        truth.append(np.linalg.inv(step))
    return np.stack(moved), np.stack(truth)


def corner_errors_px(estimated: np.ndarray, truth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the distances (T, 4) of the corners mapped by `estimated` and by `truth` (T, 3, 3), in pixels."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    return np.linalg.norm(((estimated - truth) @ corners)[:, :2], axis=1)


def tracked_jitter_px(clip: np.ndarray, covered: np.ndarray | None = None) -> float:
    """Measure the RMS motion of the corners between frames of a square `clip` (T, S, S, 3), in pixels at 128 px.

    The method is independent of the stabilizer: good features to track (Shi and Tomasi), tracked forward and backward
    by pyramidal Lucas-Kanade, and the similarity that fits most of them. Pixels outside `covered` (T, S, S) bool (fill)
    and frames without tracked points are ignored; NaN if that is all of them. Without `covered`, pixels equal to the
    preceding frame are ignored, which also hides a background that a video encoder repeats exactly.
    """
    side = clip.shape[1]
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    identity = np.eye(3)[:2]
    steps = []
    for t in range(len(clip) - 1):
        if covered is None:
            changed = (clip[t] != clip[t + 1]).any(-1).astype(np.uint8)
            changed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        elif np.array_equal(clip[t], clip[t + 1]):
            continue
        else:
            changed = (covered[t] & covered[t + 1]).astype(np.uint8)
        step = _tracked_step(grays[t], grays[t + 1], 255 * cv2.erode(changed, np.ones((5, 5), np.uint8)))
        if step is not None:
            corners = corner_errors_px(step[None], identity[None], side, side)
            steps.append((corners**2).mean())
    return 128 / side * float(np.sqrt(np.mean(steps))) if steps else float("nan")


def _tracked_step(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Fit the similarity (2, 3) from `before` to `after` (S, S) uint8 to tracked points in `mask`; None if too few."""
    source, target = _tracked_points(before, after, mask)
    if len(source) < 8:
        return None
    return cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=1.0, confidence=0.999)[0]


def _tracked_points(before: np.ndarray, after: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, 2) of `before` and their positions in `after`, if tracking back returns to the start."""
    points = cv2.goodFeaturesToTrack(before, 200, 0.01, 4, mask=mask)
    if points is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    options = {"winSize": (15, 15), "maxLevel": 3, "criteria": (3, 30, 0.003)}
    forward, forward_status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)
    backward, backward_status, _ = cv2.calcOpticalFlowPyrLK(after, before, forward, None, **options)
    error = np.linalg.norm((backward - points).reshape(-1, 2), axis=1)
    valid = (forward_status.ravel() == 1) & (backward_status.ravel() == 1) & (error < 0.3)
    return points.reshape(-1, 2)[valid], forward.reshape(-1, 2)[valid]


def tracked_errors_px(grays: np.ndarray, transforms: np.ndarray) -> float:
    """Measure the error of `transforms` (T, 3, 3) to the first frame on points tracked in `grays` (T, H, W) uint8.

    It is the distance to the tracked point in the preceding frame, pixels: median over points and pairs.
    """
    errors = []
    for t in range(1, len(grays)):
        before, after = _tracked_points(grays[t - 1], grays[t], None)
        step = np.linalg.inv(transforms[t - 1]) @ transforms[t]
        mapped = np.hstack([after, np.ones((len(after), 1))]) @ step.T
        errors.append(np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - before, axis=1))
    return float(np.median(np.concatenate(errors)))
