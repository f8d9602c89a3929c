"""The generators: two streams, moving foreground and static background with the mask between them; or one stream
(paper section 2.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.models.config import ModelConfig
from vgan.models.layers import (
    WIDTHS,
    decoder_stack,
    doubling_kernel,
    initialize,
    stem,
    to_channels_last,
    transposed_conv_by_blocks,
    under_autocast,
    upsample_layer,
)


class GeneratorOutput(NamedTuple):
    """What a generator draws and what it drew it from. All in [-1, 1] but the mask in [0, 1].

    A one-stream generator draws the video alone; the other three are then None.
    """

    video: Tensor  # (B, 3, T, H, W), the composite
    foreground: Tensor | None  # (B, 3, T, H, W)
    mask: Tensor | None  # (B, 1, T, H, W)
    background: Tensor | None  # (B, 3, 1, H, W), the same for every t


class Heads(nn.Module):
    """Foreground and mask from the trunk's last map: two output layers, computed as one convolution."""

    def __init__(self, cin: int, upsample: str) -> None:
        super().__init__()
        self.rgb, self.mask = upsample_layer(3, cin, 3, upsample), upsample_layer(3, cin, 1, upsample)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground (B, 3, T, H, W) in [-1, 1] and mask (B, 1, T, H, W) in [0, 1] of x (B, C, T/2, H/2, W/2)."""
        weight = torch.cat([doubling_kernel(self.rgb), doubling_kernel(self.mask)], 1)
        bias = torch.cat([self.rgb.bias, self.mask.bias])  # type: ignore[list-item]
        both = (
            transposed_conv_by_blocks(x, weight, bias)
            if under_autocast(x)
            else F.conv_transpose3d(x, weight, bias, 2, 1)
        )
        # Channel by channel in memory: what follows is elementwise, and slow on three of four interleaved channels.
        rgb, mask = both.contiguous().split([3, 1], 1)
        return torch.tanh(rgb), torch.sigmoid(mask)


class OneStreamGenerator(nn.Module):
    """The foreground stream alone, without a mask. 12,663,619 parameters at base 64 (paper section 2.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in WIDTHS]
        self.stem = stem(3, config.z_size, widths[0], config.code_shape)
        self.trunk = decoder_stack(3, widths, config.upsample)
        self.rgb = upsample_layer(3, widths[-1], 3, config.upsample)
        self.apply(initialize)

    def forward(self, z: Tensor) -> GeneratorOutput:
        """Draw clips from noise z (B, Z)."""
        x = self.trunk(to_channels_last(self.stem(z[:, :, None, None, None])))  # (B, base, T/2, H/2, W/2)
        return GeneratorOutput(torch.tanh(self.rgb(x)), None, None, None)


class TwoStreamGenerator(nn.Module):
    """G(z) = m(z) * f(z) + (1 - m(z)) * b(z), paper equation 2, with one z for both streams.

    At base 64, 32 frames and 64 pixels it is the published layer table: 16,245,383 parameters. Other lengths and
    sizes change only the first kernel, which is (T/16, H/16, W/16).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in WIDTHS]
        self.stem = stem(3, config.z_size, widths[0], config.code_shape)
        self.trunk = decoder_stack(3, widths, config.upsample)
        self.heads = Heads(widths[-1], config.upsample)
        self.background = nn.Sequential(
            stem(2, config.z_size, widths[0], config.code_shape[1:]),
            decoder_stack(2, widths, config.upsample),
            upsample_layer(2, widths[-1], 3, config.upsample),
            nn.Tanh(),
        )
        self.apply(initialize)

    def forward(self, z: Tensor) -> GeneratorOutput:
        """Draw clips from noise z (B, Z)."""
        x = self.trunk(to_channels_last(self.stem(z[:, :, None, None, None])))  # (B, base, T/2, H/2, W/2)
        foreground, mask = self.heads(x)  # (B, 3, T, H, W), (B, 1, T, H, W)
        background = self.background(z[:, :, None, None])[:, :, None]  # (B, 3, 1, H, W)
        return composite(foreground, mask, background)


def composite(foreground: Tensor, mask: Tensor, background: Tensor) -> GeneratorOutput:
    """Equation 2: the background (B, 3, 1, H, W), replicated over time, seen where the mask is 0."""
    return GeneratorOutput(background + mask * (foreground - background), foreground, mask, background)
