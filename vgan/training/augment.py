"""Differentiable augmentation of what D sees, real and drawn alike (DiffAugment, https://arxiv.org/abs/2006.10738).

Every frame of a clip is changed alike, so that motion stays what it was. Nothing is random here: the numbers come in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_DRAWS = 7  # uniform numbers a clip needs
SHIFT = 1 / 8  # largest translation over the side
HOLE = 1 / 2  # side of the cut-out square over the side


def augment(video: Tensor, draws: Tensor, policy: Sequence[str]) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1], changed by uniform draws (B, NUM_DRAWS) in [0, 1).

    Args:
        policy: any of color (brightness +-0.5, saturation 0..2, contrast 0.5..1.5), translation (by up to an eighth of
            the side, gray coming in), cutout (a gray square of half the side).
    """
    if "color" in policy:
        video = _color(video, *(draws[:, i].view(-1, 1, 1, 1, 1) for i in range(3)))
    if "translation" in policy:
        video = _translation(video, draws[:, 3], draws[:, 4])
    if "cutout" in policy:
        video = _cutout(video, draws[:, 5], draws[:, 6])
    return video


def horizontal_flip(video: Tensor, which: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W), mirrored left to right where `which` (B,) bool says so."""
    return torch.where(which.view(-1, 1, 1, 1, 1), video.flip(-1), video)


def _color(video: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """All three in one pass over the clips: each is linear in the pixel, its gray value and the clip's mean."""
    brightness, saturation, contrast = brightness - 0.5, 2 * saturation, 0.5 + contrast
    gray = video.mean(dim=1, keepdim=True)  # (B, 1, T, H, W), which saturation keeps
    mean = gray.mean(dim=(2, 3, 4), keepdim=True) + brightness  # which contrast keeps
    same = contrast * (1 - saturation) * gray + (mean + contrast * (brightness - mean))
    return torch.addcmul(same, video, contrast * saturation)


def _translation(video: Tensor, down: Tensor, right: Tensor) -> Tensor:
    height, width = video.shape[-2:]
    reach = (round(height * SHIFT), round(width * SHIFT))
    draws = torch.stack([down, right], dim=1)
    corners = (draws * (2 * torch.tensor(reach, device=draws.device) + 1)).long().tolist()
    padded = F.pad(video, (reach[1], reach[1], reach[0], reach[0]))
    windows = [padded[i : i + 1, ..., y : y + height, x : x + width] for i, (y, x) in enumerate(corners)]
    return torch.cat(windows)  # keeps the order of memory, as a stack of padded clips would not


def _cutout(video: Tensor, down: Tensor, right: Tensor) -> Tensor:
    height, width = video.shape[-2:]
    kept = _outside(height, down, video.device)[:, :, None] | _outside(width, right, video.device)[:, None, :]
    return video * kept[:, None, None].to(video.dtype)  # (B, 1, 1, H, W)


def _outside(side: int, draw: Tensor, device: torch.device) -> Tensor:
    """Which of `side` positions lie outside a hole centred at `draw` of it: (B, side) bool."""
    centre = (draw * side).floor().to(device)[:, None]
    offset = torch.arange(side, device=device)[None] - centre
    return (offset < -side * HOLE / 2) | (offset >= side * HOLE / 2)
