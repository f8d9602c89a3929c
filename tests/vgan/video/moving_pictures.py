"""Moving pictures made on the spot, with their truth."""

from __future__ import annotations

import cv2
import numpy as np

HEIGHT, WIDTH = 128, 170  # what UCF101's 240x320 becomes at the default decode size


def make_texture(seed: int, size: int = 420) -> np.ndarray:
    """(size, size, 3) uint8: noise at several scales, which SIFT finds corners in at any of them."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3))
    for sigma, weight in ((1.5, 1.0), (3.0, 1.5), (8.0, 2.0), (24.0, 2.0)):
        layer = cv2.GaussianBlur(rng.normal(size=(size, size, 3)), (0, 0), sigma)
        image += weight * layer / layer.std()
    return np.clip(128 + 22 * image, 0, 255).astype(np.uint8)


def camera(shift: tuple[float, float], degrees: float = 0.0, zoom: float = 1.0) -> np.ndarray:
    """(3, 3): a frame's pixels to the scene's, for a camera that looks at the scene's middle plus `shift` pixels."""
    angle = np.deg2rad(degrees)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    to_middle = np.array([[1, 0, -(WIDTH - 1) / 2], [0, 1, -(HEIGHT - 1) / 2], [0, 0, 1]])
    place = np.array([[1, 0, 209.5 + shift[0]], [0, 1, 209.5 + shift[1]], [0, 0, 1]])
    return place @ turn @ to_middle


def film(scenes: list[np.ndarray], cameras: list[np.ndarray]) -> np.ndarray:
    """(T, HEIGHT, WIDTH, 3) uint8: frame t shows scenes[t] through cameras[t]."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.stack(
        [cv2.warpAffine(s, c[:2], (WIDTH, HEIGHT), flags=flags) for s, c in zip(scenes, cameras, strict=True)]
    )


def shaky_cameras(seed: int, num_frames: int, shift_px: float = 4.0) -> list[np.ndarray]:
    """A hand-held camera: every frame is off by its own random shift, turn (1 degree) and zoom (1 %)."""
    rng = np.random.default_rng(seed)
    return [
        camera(tuple(rng.normal(0, shift_px, 2)), rng.normal(0, 1.0), 1 + rng.normal(0, 0.01))
        for _ in range(num_frames)
    ]
