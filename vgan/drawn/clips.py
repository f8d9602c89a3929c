"""Draw one clip of an action with its true camera motion: the picture of `action_set`, usable alone."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("Bounce", "Circle", "Grow", "SlideLeft", "SlideRight", "Spin")
_SPREAD = 0.24  # backgrounds reach this far beyond the frame on each side, share of the frame; the shake stays inside


@dataclass(frozen=True, kw_only=True)
class DrawnClip:
    """One drawn clip with the truth it was drawn from."""

    frames: np.ndarray  # (T, H, W, 3) uint8, RGB
    camera: np.ndarray  # (T, 3, 3) float64: scene pixels -> pixels of frame t, a similarity; identity at t = 0
    track: np.ndarray  # (T, 4) float64: the object's x, y (scene pixels), angle (radians) and scale (1 = as drawn)


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
) -> DrawnClip:
    """Draw one clip of `class_name` with its true camera motion; a pure function of its arguments.

    The appearance depends on (seed, group, size) only; start, speed and shake on `index` too. The class decides how the
    object moves and nothing else: clip `index` of group `group` begins with the same picture in every class.

    Raises:
        ValueError: unknown class.
    """
    if class_name not in CLASSES:
        raise ValueError(f"class_name must be one of {', '.join(CLASSES)}; got {class_name!r}")
    look = np.random.default_rng([seed, 1, group])
    background = _background(look, size)
    sprite = _sprite(look, size)
    moves = np.random.default_rng([seed, 2, group, index])
    times_s = np.arange(num_frames) / fps
    track = _object_track(class_name, times_s, size, moves)
    camera = _camera_walk(num_frames, size, shake_px, moves)
    frames = np.empty((num_frames, *size, 3), np.uint8)
    for t in range(num_frames):
        frames[t] = _frame(background, sprite, camera[t], track[t], size)
    return DrawnClip(frames=frames, camera=camera, track=track)


def _object_track(name: str, times_s: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Where the object is at each time: (T, 4) x, y in scene pixels, angle in radians, scale.

    Every class draws the same numbers and starts from the same place. A cycle takes about 1.3 s (a 32-frame clip at 25
    frames a second); slides and growth take about 2.2 s and start over, so that a longer video keeps its class.
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
    """Similarities (T, 3, 3) about the frame's centre: a smooth random walk that is pulled back to its start.

    `shake_px` is the RMS displacement of the picture between neighbouring frames; a tenth of it, seen at the frame's
    edge, comes from rotation and as much from zoom.
    """
    speed = rng.normal(size=(num_frames, 4))
    walk = np.zeros((num_frames, 4))
    step = np.zeros(4)
    for t in range(1, num_frames):
        step = 0.75 * step + speed[t] - 0.06 * walk[t - 1]  # momentum makes it smooth, the pull keeps it in the frame
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
    background: np.ndarray, sprite: np.ndarray, camera: np.ndarray, place: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """One frame (H, W, 3) uint8: the background, and the sprite blended over the pixels it can touch."""
    height, width = size
    margin = np.array([(background.shape[1] - width) // 2, (background.shape[0] - height) // 2])
    matrix = camera[:2].copy()
    matrix[:, 2] -= camera[:2, :2] @ margin
    frame = cv2.warpAffine(background, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    x, y, angle, scale = place
    side = sprite.shape[0]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    spin = np.array([[cos, -sin, x], [sin, cos, y], [0.0, 0.0, 1.0]])
    spin[:2, 2] -= spin[:2, :2] @ np.full(2, (side - 1) / 2)
    whole = camera @ spin
    corners = whole[:2] @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]], np.float64)
    left, top = np.clip(np.floor(corners.min(axis=1)).astype(int), 0, [width, height])
    right, bottom = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, 0, [width, height])
    if left >= right or top >= bottom:
        return frame
    whole[:2, 2] -= (left, top)
    patch = cv2.warpAffine(sprite, whole[:2], (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    alpha = patch[..., 3:].astype(np.uint16)
    region = frame[top:bottom, left:right]
    region[:] = (patch[..., :3] * alpha + region * (255 - alpha)) // 255
    return frame


def _noise(rng: np.random.Generator, height: int, width: int, octaves: int, first: int) -> np.ndarray:
    """Fractal noise (H, W) float32 in [0, 1]: `octaves` layers, `first` cells across the coarsest's short side."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = first * 2**octave
        grid = rng.random((cells * height // min(height, width) + 2, cells * width // min(height, width) + 2))
        layer = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        total += layer * 0.75**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _colour(hue_turns: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) float32 in 0..255 of a hue in turns and saturation and value in [0, 1]."""
    pixel = np.array([[[hue_turns % 1.0 * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A muted landscape of noise and pebbles, (H + margins, W + margins, 3) uint8, with corners enough for SIFT."""
    height, width = (int(n * (1 + 2 * _SPREAD)) for n in size)
    hue = rng.random()
    dark, light = _colour(hue, 0.45, 0.26), _colour(hue + rng.uniform(-0.12, 0.12), 0.28, 0.7)
    ground = _noise(rng, height, width, octaves=6, first=3)[..., None]
    picture = np.ascontiguousarray(dark + (light - dark) * ground).astype(np.uint8)
    for _ in range(240):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = tuple(int(a) for a in rng.integers(max(1, min(size) // 90), max(3, min(size) // 26), 2))
        colour = _colour(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.1, 0.5), rng.uniform(0.12, 0.9))
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour.tolist(), -1, cv2.LINE_AA)
    return picture


def _sprite(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """The moving object: a vivid textured polygon, star or disc, (S, S, 4) uint8 RGBA, a third of the frame high."""
    radius = min(size) * rng.uniform(0.17, 0.21)
    side = int(2 * radius * 1.3) + 2
    corners, dent = rng.choice([[4, 0.0], [5, 0.4], [3, 0.0], [6, 0.3], [40, 0.0]])
    turns = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    rim = radius * (1 - dent * (0.5 + 0.5 * np.cos(corners * turns))) if dent else _polygon_rim(radius, corners, turns)
    outline = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rim[:, None] + (side - 1) / 2

    hue = rng.random()
    first, second = _colour(hue, 0.95, 0.98), _colour(hue + rng.uniform(0.3, 0.7), 0.85, rng.uniform(0.35, 0.95))
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
    """Distance from the centre to a regular polygon's rim in each direction."""
    wedge = 2 * np.pi / corners
    return radius * np.cos(wedge / 2) / np.cos(turns % wedge - wedge / 2)
