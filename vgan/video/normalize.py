"""Conversion of pixels between uint8, channels last (files, display) and float, channels first (networks)."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_clips(frames: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Convert uint8 frames (B, T, H, W, C) in 0..255 to float32 clips (B, C, T, H, W) in [-1, 1] on the same device.

    Args:
        frames: (B, T, H, W, C) uint8.
        memory_format: memory format of the clips; torch.channels_last_3d keeps the channels last in memory.
    """
    clips = frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=memory_format, copy=True)
    return clips.div_(127.5).sub_(1.0)


def denormalize_clips(clips: Tensor) -> Tensor:
    """Convert float clips (B, C, T, H, W), clamped to [-1, 1], to uint8 frames (B, T, H, W, C), rounded to nearest."""
    levels = ((clips.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()
