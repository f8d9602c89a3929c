"""Differentiable augmentation of D's real and generated inputs (DiffAugment, https://arxiv.org/abs/2006.10738).

All frames of a clip get the same change, so that motion is preserved. The functions are deterministic: the caller
passes the random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_DRAWS = 7  # uniform random numbers per clip
SHIFT = 1 / 8  # maximum translation over the side
HOLE = 1 / 2  # side of the cutout square over the side of a frame


def augment(video: Tensor, draws: Tensor, policy: Sequence[str]) -> Tensor:
    """Return augmented clips (B, 3, T, H, W).

    Args:
        video: clips (B, 3, T, H, W) in [-1, 1].
        draws: uniform random numbers (B, NUM_DRAWS) in [0, 1).
        policy: any of color (brightness +-0.5, saturation 0..2, contrast 0.5..1.5), translation (by up to an eighth of
            the side, padded with gray), cutout (a gray square of half the side).
    """
    if "color" in policy:
        video = _color(video, *(draws[:, i].view(-1, 1, 1, 1, 1) for i in range(3)))
    if "translation" in policy:
        video = _translation(video, draws[:, 3], draws[:, 4])
    if "cutout" in policy:
        video = _cutout(video, draws[:, 5], draws[:, 6])
    return video


def horizontal_flip(video: Tensor, which: Tensor) -> Tensor:
    """Flip the clips (B, 3, T, H, W) horizontally for which the mask `which` (B,) bool is true."""
    return torch.where(which.view(-1, 1, 1, 1, 1), video.flip(-1), video)


def _color(video: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Change brightness, saturation and contrast by draws (B, 1, 1, 1, 1) in [0, 1).

    Each change is linear in the pixel, its gray value and the clip's mean; one pass over the clips applies all three.
    """
    brightness, saturation, contrast = brightness - 0.5, 2 * saturation, 0.5 + contrast
    gray = video.mean(dim=1, keepdim=True)  # (B, 1, T, H, W), unchanged by saturation
    mean = gray.mean(dim=(2, 3, 4), keepdim=True) + brightness  # (B, 1, 1, 1, 1), unchanged by contrast
    offset = contrast * (1 - saturation) * gray + (mean + contrast * (brightness - mean))
    return torch.addcmul(offset, video, contrast * saturation)


def _translation(video: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift clips by up to SHIFT of their sides, by draws (B,) in [0, 1), and pad with gray."""
    height, width = video.shape[-2:]
    reach = (round(height * SHIFT), round(width * SHIFT))
    draws = torch.stack([down, right], dim=1)
    corners = (draws * (2 * torch.tensor(reach, device=draws.device) + 1)).long().tolist()
    padded = F.pad(video, (reach[1], reach[1], reach[0], reach[0]))
    windows = [padded[i : i + 1, ..., y : y + height, x : x + width] for i, (y, x) in enumerate(corners)]
    return torch.cat(windows)  # preserves the memory format, which a stack of padded clips does not


def _cutout(video: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Set a square of HOLE of the sides, centered by draws (B,) in [0, 1), to gray."""
    height, width = video.shape[-2:]
    rows = _outside_hole(height, down, video.device)  # (B, H)
    columns = _outside_hole(width, right, video.device)  # (B, W)
    visible = rows[:, :, None] | columns[:, None, :]
    return video * visible[:, None, None].to(video.dtype)  # (B, 1, 1, H, W)


def _outside_hole(side: int, draw: Tensor, device: torch.device) -> Tensor:
    """Return a mask (B, side) bool of the positions outside a hole centered at `draw` (B,) of the side."""
    center = (draw * side).floor().to(device)[:, None]
    offset = torch.arange(side, device=device)[None] - center
    return (offset < -side * HOLE / 2) | (offset >= side * HOLE / 2)
