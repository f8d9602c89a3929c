"""Synthetic clips of single actions with known camera and object motion; `action_set` is built from them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("Bounce", "Circle", "Grow", "SlideLeft", "SlideRight", "Spin")
_SPREAD = 0.24  # margin of the background on each side, share of the frame; camera shake stays within it


@dataclass(frozen=True, kw_only=True)
class SyntheticClip:
    """Synthetic clip with its ground-truth motion."""

    frames: np.ndarray  # (T, H, W, 3) uint8, RGB
    camera: np.ndarray  # (T, 3, 3) float64: similarity from scene pixels to pixels of frame t; identity at t = 0
    track: np.ndarray  # (T, 4) float64: the object's x, y (scene pixels), angle (radians) and scale (1 = original size)


def draw_clip(
    class_name: str,
    *,
    group: int = 1,
    index: int = 1,
    seed: int = 0,
    num_frames: int = 40,
    size: tuple[int, int] = (240, 320),
    fps: float = 25.0,
    shake_px: float = 1.0,
) -> SyntheticClip:
    """Draw one clip of `class_name` with its camera motion, as a pure function of the arguments.

    Appearance depends on (seed, group, size) only; start, speed and shake also depend on `index`. The class determines
    only the object's motion: clip `index` of group `group` has the same first frame in every class.

    Args:
        class_name: one of `CLASSES`.
        group: group of clips with the same appearance.
        index: number of the clip in its group.
        seed: seed of the drawing.
        num_frames: T, number of frames.
        size: height and width, pixels.
        fps: frames per second.
        shake_px: camera movement between adjacent frames, RMS pixels; 0 disables camera motion.

    Raises:
        ValueError: `class_name` is unknown.
    """
    if class_name not in CLASSES:
        raise ValueError(f"class_name must be one of {', '.join(CLASSES)}; got {class_name!r}")
    appearance_rng = np.random.default_rng([seed, 1, group])
    background = _background(appearance_rng, size)
    sprite = _sprite(appearance_rng, size)
    motion_rng = np.random.default_rng([seed, 2, group, index])
    times_s = np.arange(num_frames) / fps
    track = _object_track(class_name, times_s, size, motion_rng)
    camera = _camera_walk(num_frames, size, shake_px, motion_rng)
    frames = np.empty((num_frames, *size, 3), np.uint8)
    for t in range(num_frames):
        frames[t] = _frame(background, sprite, camera[t], track[t], size)
    return SyntheticClip(frames=frames, camera=camera, track=track)


def _object_track(name: str, times_s: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Compute the object's trajectory (T, 4): x, y in scene pixels, angle in radians, scale.

    All classes draw the same random numbers and start from the same position. A cycle takes about 1.3 s (a 32-frame
    clip at 25 frames per second). Slides and growth take about 2.2 s and repeat, so that a longer video keeps its
    class.
    """
    height, width = size
    x, y = np.array([width, height]) * rng.uniform([0.42, 0.43], [0.58, 0.57])
    angle, log_scale = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.15)
    turn, speed, reach = rng.choice([-1.0, 1.0]), rng.uniform(0.85, 1.15), rng.uniform(0.9, 1.1)
    cycles, passes = times_s * speed / 1.3, times_s * speed / 2.2 % 1.0
    circle = 2 * np.pi * cycles

    track = np.empty((len(times_s), 4))
    track[:] = (x, y, angle, log_scale)
    if name == "Bounce":
        track[:, 1] -= reach * 0.38 * height * np.abs(np.sin(0.75 * circle))
    elif name == "Circle":
        track[:, 0] += reach * 0.2 * height * (1 - np.cos(circle)) * turn
        track[:, 1] += reach * 0.2 * height * np.sin(circle)
    elif name == "Grow":
        track[:, 3] += reach * 1.2 * passes
    elif name == "Spin":
        track[:, 2] += reach * 1.2 * circle * turn
    else:
        track[:, 0] += reach * 0.75 * width * passes * (1.0 if name == "SlideRight" else -1.0)
    track[:, 3] = np.exp(track[:, 3])
    return track


def _camera_walk(num_frames: int, size: tuple[int, int], shake_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw camera similarities (T, 3, 3) about the frame's center: a smooth mean-reverting random walk.

    `shake_px` is the RMS displacement of the picture between adjacent frames. Rotation and zoom each contribute a tenth
    of it, measured at the frame's edge.
    """
    speed = rng.normal(size=(num_frames, 4))
    walk = np.zeros((num_frames, 4))
    step = np.zeros(4)
    for t in range(1, num_frames):
        # Momentum for smoothness, mean reversion to stay within the background.
        step = 0.75 * step + speed[t] - 0.06 * walk[t - 1]
        walk[t] = walk[t - 1] + step
    rms = np.sqrt(np.mean(np.diff(walk, axis=0) ** 2, axis=0)) if num_frames > 1 else np.ones(4)
    edge_px = np.hypot(*size) / 2
    walk *= np.array([0.7, 0.7, 0.1 / edge_px, 0.1 / edge_px]) * shake_px / np.maximum(rms, 1e-9)
    reach_px = _SPREAD * 0.8 * min(size)
    walk[:, :2] = np.clip(walk[:, :2], -reach_px, reach_px)

    height, width = size
    camera = np.zeros((num_frames, 3, 3))
    cos, sin = np.cos(walk[:, 2]) * np.exp(walk[:, 3]), np.sin(walk[:, 2]) * np.exp(walk[:, 3])
    camera[:, 0, 0], camera[:, 0, 1], camera[:, 1, 0], camera[:, 1, 1] = cos, -sin, sin, cos
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    camera[:, :2, 2] = middle - camera[:, :2, :2] @ middle + walk[:, :2]
    camera[:, 2, 2] = 1.0
    return camera


def _frame(
    background: np.ndarray, sprite: np.ndarray, camera: np.ndarray, pose: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Render one frame (H, W, 3) uint8: the background with the sprite blended over its bounding box."""
    height, width = size
    margin = np.array([(background.shape[1] - width) // 2, (background.shape[0] - height) // 2])
    matrix = camera[:2].copy()
    matrix[:, 2] -= camera[:2, :2] @ margin
    frame = cv2.warpAffine(background, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    x, y, angle, scale = pose
    side = sprite.shape[0]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    placement = np.array([[cos, -sin, x], [sin, cos, y], [0.0, 0.0, 1.0]])
    placement[:2, 2] -= placement[:2, :2] @ np.full(2, (side - 1) / 2)
    to_frame = camera @ placement
    corners = to_frame[:2] @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]], np.float64)
    left, top = np.clip(np.floor(corners.min(axis=1)).astype(int), 0, [width, height])
    right, bottom = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, 0, [width, height])
    if left >= right or top >= bottom:
        return frame
    to_frame[:2, 2] -= (left, top)
    patch = cv2.warpAffine(sprite, to_frame[:2], (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    alpha = patch[..., 3:].astype(np.uint16)
    region = frame[top:bottom, left:right]
    region[:] = (patch[..., :3] * alpha + region * (255 - alpha)) // 255
    return frame


def _noise(rng: np.random.Generator, height: int, width: int, octaves: int, first: int) -> np.ndarray:
    """Draw fractal noise (H, W) float32 in [0, 1]: `octaves` layers, `first` cells on the coarsest's short side."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = first * 2**octave
        grid = rng.random((cells * height // min(height, width) + 2, cells * width // min(height, width) + 2))
        layer = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        total += layer * 0.75**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _color(hue_turns: float, saturation: float, value: float) -> np.ndarray:
    """Convert a hue (1 = full circle), saturation and value in [0, 1] to RGB (3,) float32 in 0..255."""
    pixel = np.array([[[hue_turns % 1.0 * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw a background of noise and ellipses, (H + margins, W + margins, 3) uint8, with enough corners for SIFT."""
    height, width = (int(n * (1 + 2 * _SPREAD)) for n in size)
    hue = rng.random()
    dark, light = _color(hue, 0.45, 0.26), _color(hue + rng.uniform(-0.12, 0.12), 0.28, 0.7)
    ground = _noise(rng, height, width, octaves=6, first=3)[..., None]
    picture = np.ascontiguousarray(dark + (light - dark) * ground).astype(np.uint8)
    for _ in range(240):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = tuple(int(a) for a in rng.integers(max(1, min(size) // 90), max(3, min(size) // 26), 2))
        color = _color(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.1, 0.5), rng.uniform(0.12, 0.9))
        cv2.ellipse(picture, center, axes, float(rng.uniform(0, 180)), 0, 360, color.tolist(), -1, cv2.LINE_AA)
    return picture


def _sprite(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw the moving object, (S, S, 4) uint8 RGBA: a textured polygon, star or disc, a third of the frame high."""
    radius = min(size) * rng.uniform(0.17, 0.21)
    side = int(2 * radius * 1.3) + 2
    corners, dent = rng.choice([[4, 0.0], [5, 0.4], [3, 0.0], [6, 0.3], [40, 0.0]])
    turns = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    rim = radius * (1 - dent * (0.5 + 0.5 * np.cos(corners * turns))) if dent else _polygon_rim(radius, corners, turns)
    outline = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rim[:, None] + (side - 1) / 2

    hue = rng.random()
    first, second = _color(hue, 0.95, 0.98), _color(hue + rng.uniform(0.3, 0.7), 0.85, rng.uniform(0.35, 0.95))
    texture = _noise(rng, side, side, octaves=4, first=2)
    ripple = 0.5 + 0.5 * np.sin(texture * rng.uniform(4, 8) + np.linspace(0, rng.uniform(5, 8), side)[None, :])
    paint = (first + (second - first) * (ripple > 0.5)[..., None]) * (0.75 + 0.25 * texture[..., None])
    paint = np.ascontiguousarray(paint).astype(np.uint8)
    points = np.round(outline * 16).astype(np.int32)  # 4 fractional bits
    cv2.polylines(paint, [points], True, (first * 0.25).tolist(), max(2, int(radius * 0.12)), cv2.LINE_AA, 4)
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, [points], 255, cv2.LINE_AA, 4)
    return np.dstack([paint, alpha])


def _polygon_rim(radius: float, corners: float, turns: np.ndarray) -> np.ndarray:
    """Return the distance from the center to a regular polygon's edge in each direction (radians)."""
    wedge = 2 * np.pi / corners
    return radius * np.cos(wedge / 2) / np.cos(turns % wedge - wedge / 2)
